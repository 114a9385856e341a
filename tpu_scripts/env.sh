# shellcheck shell=bash
# Which TPU VM the scripts beside this file work on. Write your values here, or export them: what is
# in the environment wins.

: "${PROTLM_PROJECT:=}"       # Google Cloud project
: "${PROTLM_ZONE:=}"          # zone that has the type: gcloud compute tpus accelerator-types list
: "${PROTLM_BUCKET:=}"        # bucket in the zone's region; runs are kept in gs://BUCKET/runs/
: "${PROTLM_NAME:=protlm}"    # name of the VM (and of its request, where queued)
: "${PROTLM_TYPE:=v3-8}"      # v3-8, v4-8, v5e-8 (Google's v5litepod-8): one host; v3-512: a pod
: "${PROTLM_SPOT:=yes}"       # yes: cheap, may be taken away at any moment; no: on demand
: "${PROTLM_QUEUED:=no}"      # yes: wait in the queue for the machine; no: now or not at all

# The system image on the VM; by default the one Google names for the type.
: "${PROTLM_RUNTIME:=}"
