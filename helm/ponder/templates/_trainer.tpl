{{/* One run: every step but the last is an init container, so that one follows the other. */}}

{{- define "ponder.trainerJob" -}}
backoffLimit: {{ .values.backoffLimit | int }}
activeDeadlineSeconds: {{ .values.activeDeadlineSeconds | int }}
{{- /* One that is gone would be made and run again by the next upgrade. */}}
{{- if .values.schedule }}
ttlSecondsAfterFinished: {{ .values.ttlSecondsAfterFinished | int }}
{{- end }}
template:
  metadata:
    labels:
      {{- /* Not the chart's version: it changes nothing about a run. */}}
      {{- include "ponder.selector" . | nindent 6 }}
      {{- with merge (dict) .values.podLabels .root.Values.global.labels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .values.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    restartPolicy: Never
    {{- include "ponder.pod" . | nindent 4 }}
    {{- $part := . }}
    {{- with initial .values.steps }}
    initContainers:
      {{- range . }}
      {{- include "ponder.trainerStep" (dict "part" $part "step" .) | nindent 6 }}
      {{- end }}
    {{- end }}
    containers:
      {{- include "ponder.trainerStep" (dict "part" . "step" (last .values.steps)) | nindent 6 }}
    volumes:
      {{- include "ponder.tmp" . | nindent 6 }}
      {{- include "ponder.shm" (dict "size" .values.shmSize) | nindent 6 }}
      - name: scratch
        emptyDir: {sizeLimit: {{ .values.workSize }}}
      - name: config
        configMap:
          name: {{ include "ponder.name" . }}
      {{- include "ponder.settingsVolumes" .root | nindent 6 }}
      {{- if include "ponder.claimsTraces" .root }}
      {{- include "ponder.claimVolume" (dict "root" .root "name" "traces" "readOnly" true) | nindent 6 }}
      {{- end }}
      {{- include "ponder.claimVolume" (dict "root" .root "name" "weights") | nindent 6 }}
      {{- if .root.Values.models.persistence.enabled }}
      {{- include "ponder.claimVolume" (dict "root" .root "name" "models" "readOnly" .root.Values.models.persistence.readOnly) | nindent 6 }}
      {{- end }}
      {{- with .values.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{- define "ponder.trainerStep" -}}
{{- $part := .part -}}
{{- $root := $part.root -}}
- name: {{ .step.name }}
  {{- include "ponder.container" $part | nindent 2 }}
  command: [python3, -m, trainer]
  args:
    {{- range .step.args }}
    - {{ . | quote }}
    {{- end }}
  env:
    - {name: HOME, value: /scratch/home}
    - {name: USER, value: ponder}
    - {name: HF_HOME, value: {{ ternary "/models/hub" "/scratch/hub" $root.Values.models.persistence.enabled }}}
    - {name: TORCHINDUCTOR_CACHE_DIR, value: /scratch/inductor}
    - {name: TRITON_CACHE_DIR, value: /scratch/triton}
    {{- if $root.Values.models.hub.offline }}
    - {name: HF_HUB_OFFLINE, value: "1"}
    {{- end }}
    {{- with include "ponder.hubEnv" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with include "ponder.redisEnv" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $part.values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    - {name: scratch, mountPath: /scratch}
    - {name: settings, mountPath: /etc/ponder, readOnly: true}
    - {name: config, mountPath: /etc/ponder-trainer, readOnly: true}
    {{- if include "ponder.claimsTraces" $root }}
    - {name: traces, mountPath: /traces, readOnly: true}
    {{- end }}
    - {name: weights, mountPath: /weights}
    {{- if $root.Values.models.persistence.enabled }}
    - {name: models, mountPath: /models{{ if $root.Values.models.persistence.readOnly }}, readOnly: true{{ end }}}
    {{- end }}
    {{- with $part.values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
