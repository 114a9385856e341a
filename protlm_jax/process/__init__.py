"""The process: the signals that end it, and the machine that it runs on."""
