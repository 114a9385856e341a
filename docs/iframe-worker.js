// Search runs in a Worker, which browsers refuse on pages that are read from disk. There this one
// takes its place: the same script in a hidden frame, with the same messages. As the offline plugin
// of Material for MkDocs expects it, which would load one from the network.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source === inside) {
          event.stopImmediatePropagation();
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      const load = (one) => `new Promise((done) => {
        const script = document.createElement("script");
        script.src = ${one}; script.onload = done; document.body.appendChild(script); })`;
      inside.document.open();
      inside.document.write(`<body><script>
        postMessage = (data) => parent.postMessage(data, "*");
        importScripts = async (...urls) => { for (const url of urls) await ${load("url")}; };
      <\/script><script src="${url}"><\/script></body>`);
      inside.document.close();
    }
    postMessage(data) {
      const inside = this.frame.contentWindow; // its own postMessage leads to this page
      const send = () => inside.dispatchEvent(new MessageEvent("message", { data }));
      if (inside.document.readyState === "complete") send();
      else this.frame.addEventListener("load", send);
    }
    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
