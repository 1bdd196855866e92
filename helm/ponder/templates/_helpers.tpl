{{/* Names, labels, images. A "part" is (dict "root" $ "name" "policy" "values" .Values.policy). */}}

{{- define "ponder.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ponder.name" -}}
{{- printf "%s-%s" (include "ponder.fullname" .root) .name -}}
{{- end -}}

{{/* Of a part's pods, and never changed: a Deployment's selector cannot be. */}}
{{- define "ponder.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "ponder.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include "ponder.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: ponder
{{- with .root.Values.global.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of a part's object; "suffix" is put behind its name */}}
{{- define "ponder.metadata" -}}
name: {{ include "ponder.name" . }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "ponder.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The parts that serve, as a YAML list of names */}}
{{- define "ponder.serving" -}}
- gateway
{{- if eq .Values.mode "split" }}
{{- if .Values.policy.enabled }}
- policy
{{- end }}
{{- if .Values.prm.enabled }}
- prm
{{- end }}
{{- end }}
{{- if .Values.redis.enabled }}
- redis
{{- end }}
{{- end -}}

{{/* The parts that have pods */}}
{{- define "ponder.running" -}}
{{ include "ponder.serving" . }}
{{- if include "ponder.compacts" . }}
- compactor
{{- end }}
{{- if .Values.trainer.enabled }}
- trainer
{{- end }}
{{- end -}}

{{- define "ponder.shared" -}}
{{- if or .Values.redis.enabled .Values.redis.external.url -}}true{{- end -}}
{{- end -}}

{{- define "ponder.compacts" -}}
{{- if and .Values.compactor.enabled (include "ponder.shared" .) -}}true{{- end -}}
{{- end -}}

{{- define "ponder.authenticates" -}}
{{- with .Values.gateway.auth -}}
{{- if or .existingSecret .apiKeys .adminKeys .probeKey -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ponder.authSecret" -}}
{{- .Values.gateway.auth.existingSecret | default (printf "%s-gateway" (include "ponder.fullname" .)) -}}
{{- end -}}

{{- define "ponder.serviceAccount" -}}
{{- if .values.serviceAccount.create -}}
{{- .values.serviceAccount.name | default (include "ponder.name" .) -}}
{{- else -}}
{{- .values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "ponder.image" -}}
{{- $image := .values.image -}}
{{- $repository := $image.repository -}}
{{- $tag := $image.tag | default .root.Chart.AppVersion -}}
{{- if not $repository -}}
  {{- if eq .name "gateway" -}}
    {{- $repository = ternary "ponder-gateway" (printf "ponder-%s" .root.Values.policy.device) (eq .root.Values.mode "split") -}}
  {{- else if eq .values.device "cpu" -}}
    {{- $repository = "ponder-cpu" -}}
  {{- else if .root.Values.weights.enabled -}}
    {{- $repository = "ponder-gpu" -}}
  {{- else -}}
    {{- $repository = "vllm/vllm-openai" -}}
    {{- $tag = $image.tag | default "v0.32.0" -}}
  {{- end -}}
{{- end -}}
{{- with $image.registry | default .root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $repository -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ $tag }}{{- end -}}
{{- end -}}

{{- define "ponder.storageClass" -}}
{{- with .own | default .root.Values.global.storageClass -}}
storageClassName: {{ . | quote }}
{{- end -}}
{{- end -}}

{{/* The claim of models, traces or weights */}}
{{- define "ponder.claim" -}}
{{- $persistence := (get .root.Values .name).persistence -}}
{{- $persistence.existingClaim | default (include "ponder.name" .) -}}
{{- end -}}
