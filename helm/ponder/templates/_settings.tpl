{{/* The gateway's settings: Ponder's own YAML, with the user's over the chart's. */}}

{{- define "ponder.settings" -}}
{{- $ours := include "ponder.ourSettings" . | fromYaml -}}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.gateway.settings)) -}}
{{- end -}}

{{- define "ponder.ourSettings" -}}
{{- $root := . -}}
server:
  host: "0.0.0.0"
  port: 8000
  drain_seconds: {{ .Values.gateway.drainSeconds | int }}
policy:
  {{- include "ponder.engineSettings" (dict "root" . "name" "policy" "values" .Values.policy) | nindent 2 }}
{{- if has "prm" (include "ponder.models" . | fromYamlArray) }}
prm:
  engine:
    {{- include "ponder.engineSettings" (dict "root" . "name" "prm" "values" .Values.prm) | nindent 4 }}
{{- end }}
{{- if include "ponder.shared" . }}
{{- with include "ponder.store" . }}
traces:
  store: {{ . | quote }}
{{- end }}
redis:
  {{- include "ponder.redisSettings" . | nindent 2 }}
{{- end }}
{{- if .Values.weights.enabled }}
weights:
  folder: /weights
  seconds: {{ .Values.weights.seconds }}
{{- end }}
{{- end -}}

{{/* Where compacted traces are; nothing if nowhere */}}
{{- define "ponder.store" -}}
{{- .Values.traces.store | default (ternary "/archive" "" .Values.traces.persistence.enabled) -}}
{{- end -}}

{{/* True if traces have a claim: what is compacted into a store needs none */}}
{{- define "ponder.claimsTraces" -}}
{{- if and .Values.traces.persistence.enabled (not (and (include "ponder.shared" .) .Values.traces.store)) -}}true{{- end -}}
{{- end -}}

{{/* True if that is the claim */}}
{{- define "ponder.archives" -}}
{{- if and (include "ponder.shared" .) (eq (include "ponder.store" .) "/archive") -}}true{{- end -}}
{{- end -}}

{{- define "ponder.engineSettings" -}}
{{- if eq .root.Values.mode "single" -}}
kind: vllm
model: {{ include "ponder.localFolder" . | quote }}
name: {{ include "ponder.servedName" .values | quote }}
dtype: {{ .values.vllm.dtype }}
{{- with .values.vllm.maxModelLen }}
max_model_len: {{ . | int }}
{{- end }}
max_num_seqs: {{ .values.vllm.maxNumSeqs | int }}
{{- with include "ponder.kvCacheBytes" .values }}
kv_cache_bytes: {{ . }}
{{- end }}
{{- if eq .values.device "gpu" }}
gpu_memory_utilization: {{ .values.vllm.gpuMemoryUtilization }}
tensor_parallel_size: {{ .values.gpu.count | int }}
{{- end }}
{{- else -}}
{{- $dialect := ternary (dig "policy" "dialect" "vllm" .root.Values.gateway.settings) "vllm" (eq .name "policy") -}}
kind: http
url: {{ include "ponder.engineUrl" . | quote }}
model: {{ include "ponder.servedName" .values | quote }}
{{- if eq $dialect "vllm" }}
tokenizer: {{ include "ponder.tokenizer" . | quote }}
{{- end }}
{{- if and .values.enabled .values.service.headless }}
resolve_seconds: 5
{{- end }}
{{- if and .values.enabled .values.vllm.priority }}
priority: true
{{- end }}
{{- end }}
{{- with include "ponder.profile" .values }}
profile: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "ponder.redisSettings" -}}
{{- $redis := .Values.redis -}}
{{- if $redis.enabled -}}
url: redis://{{ include "ponder.fullname" . }}-redis:{{ $redis.service.port | int }}/0
{{- else -}}
url: {{ $redis.external.url | quote }}
{{- with $redis.external.username }}
username: {{ . | quote }}
{{- end }}
{{- range $setting, $file := include "ponder.redisTls" . | fromYaml }}
{{ $setting }}: /etc/ponder/{{ $file.path }}
{{- end }}
{{- end }}
prefix: {{ $redis.prefix | quote }}
{{- if include "ponder.redisSecret" . }}
password_file: /etc/ponder/redis/password
{{- end }}
{{- end -}}

{{/* The same for what reads no file */}}
{{- define "ponder.redisEnv" -}}
{{- if include "ponder.shared" . }}
{{- range $key, $value := include "ponder.redisSettings" . | fromYaml }}
- {name: PONDER_REDIS__{{ upper $key }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* The Secret with Redis' password, if it has one */}}
{{- define "ponder.redisSecret" -}}
{{- $redis := .Values.redis -}}
{{- if not $redis.enabled -}}
{{- $redis.external.existingSecret -}}
{{- else if $redis.auth.enabled -}}
{{- $redis.auth.existingSecret | default (printf "%s-redis" (include "ponder.fullname" .)) -}}
{{- end -}}
{{- end -}}

{{/* The files of TLS with an external Redis: by setting, each one's key in the Secret and its path */}}
{{- define "ponder.redisTls" -}}
{{- $tls := .Values.redis.external.tls -}}
{{- if $tls.existingSecret -}}
{{- with $tls.caKey }}
ca_file: {key: {{ . }}, path: redis/ca.pem}
{{- end }}
{{- with $tls.certKey }}
cert_file: {key: {{ . }}, path: redis/cert.pem}
key_file: {key: {{ $tls.privateKey }}, path: redis/key.pem}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "ponder.redisSecretKey" -}}
{{- ternary .Values.redis.auth.existingSecretKey .Values.redis.external.existingSecretKey .Values.redis.enabled -}}
{{- end -}}

{{/* Volumes of whoever reads the settings */}}
{{- define "ponder.settingsVolumes" -}}
- name: settings
  projected:
    sources:
      - configMap:
          name: {{ include "ponder.fullname" . }}-gateway
      {{- with include "ponder.redisSecret" . }}
      - secret:
          name: {{ . }}
          items:
            - {key: {{ include "ponder.redisSecretKey" $ }}, path: redis/password}
      {{- end }}
      {{- with include "ponder.redisTls" . | fromYaml }}
      - secret:
          name: {{ $.Values.redis.external.tls.existingSecret }}
          items:
            {{- range . }}
            - {key: {{ .key }}, path: {{ .path }}}
            {{- end }}
      {{- end }}
{{- end -}}
