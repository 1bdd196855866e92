{{/* What every pod has, and every container. */}}

{{- define "ponder.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
serviceAccountName: {{ include "ponder.serviceAccount" . }}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds | int }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.topologySpreadConstraints }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "ponder.selector" . | fromYaml)) }}
topologySpreadConstraints:
  {{- range .values.topologySpreadConstraints }}
  - {{- toYaml (merge (deepCopy .) $selector) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "ponder.podLabels" -}}
{{ include "ponder.labels" . }}
{{- with .values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Seconds in which a pod starts at the latest: its probe's, and ten minutes for images and volumes */}}
{{- define "ponder.startSeconds" -}}
{{- add 600 (mul .startupProbe.periodSeconds .startupProbe.failureThreshold) -}}
{{- end -}}

{{/* Of a container, but for its name, command and mounts */}}
{{- define "ponder.container" -}}
image: {{ include "ponder.image" . | quote }}
imagePullPolicy: {{ .values.image.pullPolicy }}
{{- with .values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- include "ponder.resources" . | nindent 2 }}
{{- if .values.lifecycle }}
lifecycle:
  {{- toYaml .values.lifecycle | nindent 2 }}
{{- else if .values.preStopSeconds }}
lifecycle:
  preStop:
    exec:
      # The images have no shell and no sleep, but Python.
      command: [python3, -c, "import time; time.sleep({{ .values.preStopSeconds | int }})"]
{{- end }}
{{- end -}}

{{- define "ponder.probes" -}}
startupProbe:
  {{- toYaml .values.startupProbe | nindent 2 }}
livenessProbe:
  {{- toYaml .values.livenessProbe | nindent 2 }}
readinessProbe:
  {{- toYaml .values.readinessProbe | nindent 2 }}
{{- end -}}

{{/* With the part's GPUs, where it has any */}}
{{- define "ponder.resources" -}}
{{- $resources := deepCopy .values.resources -}}
{{- $holder := .values -}}
{{- if eq .name "gateway" -}}{{- $holder = .root.Values.policy -}}{{- end -}}
{{- if eq (include "ponder.gpus" .) "0" -}}
{{- else -}}
{{- $gpus := dict $holder.gpu.resource (include "ponder.gpus" .) -}}
{{- $resources = mergeOverwrite $resources (dict "limits" $gpus "requests" (deepCopy $gpus)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "ponder.gpus" -}}
{{- if eq .name "trainer" -}}
{{- .values.gpu.count | int -}}
{{- else if and (eq .name "gateway") (eq .root.Values.mode "single") (eq .root.Values.policy.device "gpu") -}}
{{- .root.Values.policy.gpu.count | int -}}
{{- else if and (has .name (list "policy" "prm")) (eq .values.device "gpu") -}}
{{- .values.gpu.count | int -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- define "ponder.tmp" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .values.tmpSize }}}
{{- end -}}

{{- define "ponder.shm" -}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .size }}}
{{- end -}}

{{- define "ponder.claimVolume" -}}
- name: {{ .as | default .name }}
  persistentVolumeClaim:
    claimName: {{ include "ponder.claim" . }}
    {{- if .readOnly }}
    readOnly: true
    {{- end }}
{{- end -}}
