{{/* Models: what they are called, where they lie, how vLLM serves them. */}}

{{- define "ponder.isFolder" -}}
{{- if hasPrefix "/" .model.name -}}true{{- end -}}
{{- end -}}

{{/* True of the pair that is in the images */}}
{{- define "ponder.isShipped" -}}
{{- if hasPrefix "/opt/ponder/models/" .model.name -}}true{{- end -}}
{{- end -}}

{{- define "ponder.servedName" -}}
{{- $name := .model.name -}}
{{- if include "ponder.isFolder" . -}}{{- $name = base .model.name -}}{{- end -}}
{{- if include "ponder.isShipped" . -}}{{- $name = ternary "ponder-reference-prm" "ponder-reference" (eq $name "prm") -}}{{- end -}}
{{- .model.servedName | default $name -}}
{{- end -}}

{{/* Where a gateway finds the tokenizer, or in `single` mode the model */}}
{{- define "ponder.localFolder" -}}
{{- if include "ponder.copied" . -}}
/tokenizers{{ .values.model.name }}
{{- else if include "ponder.isFolder" .values -}}
{{- .values.model.name -}}
{{- else if eq .root.Values.mode "single" -}}
/models/{{ .values.model.name }}
{{- else -}}
/tokenizers/{{ .values.model.name }}
{{- end -}}
{{- end -}}

{{- define "ponder.profile" -}}
{{- .model.profile | default (ternary "reference" "" (eq .model.name "/opt/ponder/models/policy")) -}}
{{- end -}}

{{/* Bytes, or nothing; on CPUs vLLM would take nearly all memory */}}
{{- define "ponder.kvCacheBytes" -}}
{{- with .vllm.kvCacheBytes | default (ternary 536870912 0 (eq .device "cpu")) -}}{{ . | int64 }}{{- end -}}
{{- end -}}

{{- define "ponder.tokenizer" -}}
{{- .values.model.tokenizer | default (include "ponder.localFolder" .) -}}
{{- end -}}

{{/* The models that a gateway talks to or runs, as a YAML list of "policy" and "prm" */}}
{{- define "ponder.models" -}}
- policy
{{- if or .Values.prm.enabled .Values.prm.external.url }}
- prm
{{- end }}
{{- end -}}

{{- define "ponder.engineUrl" -}}
{{- if .values.external.url -}}
{{- .values.external.url -}}
{{- else -}}
http://{{ include "ponder.name" . }}:8000/v1
{{- end -}}
{{- end -}}

{{/* True if the model lies in its server's image: the tokenizer is copied from there */}}
{{- define "ponder.copied" -}}
{{- if and (eq .root.Values.mode "split") .values.enabled (not .values.model.tokenizer) -}}
{{- if and (include "ponder.isFolder" .values) (not (hasPrefix "/models/" .values.model.name)) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ponder.copy" -}}
- name: copy-{{ .name }}
  image: {{ include "ponder.image" . | quote }}
  imagePullPolicy: {{ .values.image.pullPolicy }}
  {{- with .root.Values.gateway.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  command:
    - python3
    - -c
    - |
      import shutil, sys
      weights = shutil.ignore_patterns("*.safetensors", "*.bin")
      shutil.copytree(sys.argv[1], sys.argv[2], ignore=weights, dirs_exist_ok=True)
    - {{ .values.model.name | quote }}
    - {{ include "ponder.localFolder" . | quote }}
  resources:
    {{- toYaml .root.Values.gateway.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: tokenizers, mountPath: /tokenizers}
{{- end -}}

{{/* A hub's model in a folder of the pod, at its revision, before the gateway starts */}}
{{- define "ponder.fetch" -}}
{{- $whole := eq .root.Values.mode "single" -}}
- name: fetch-{{ .name }}
  {{- $gateway := dict "root" .root "name" "gateway" "values" .root.Values.gateway }}
  image: {{ include "ponder.image" $gateway | quote }}
  imagePullPolicy: {{ .root.Values.gateway.image.pullPolicy }}
  {{- with .root.Values.gateway.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  command:
    - python3
    - -c
    - |
      import sys
      from huggingface_hub import snapshot_download
      name, revision, folder, *patterns = sys.argv[1:]
      snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=patterns or None)
    - {{ .values.model.name | quote }}
    - {{ .values.model.revision | default "main" | quote }}
    - {{ include "ponder.localFolder" . | quote }}
    {{- if not $whole }}
    - "*.json"
    - "*.jinja"
    - "*.model"
    - "*.txt"
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    - {name: HF_HOME, value: /tmp/hub}
    {{- with include "ponder.hubEnv" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml .root.Values.gateway.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- if $whole }}
    - {name: models, mountPath: /models}
    {{- else }}
    - {name: tokenizers, mountPath: /tokenizers}
    {{- end }}
{{- end -}}

{{/* "policy" or "prm" if its files have to be fetched for the gateway */}}
{{- define "ponder.fetched" -}}
{{- $settings := .root.Values.gateway.settings -}}
{{- $dialect := dig "policy" "dialect" "vllm" $settings -}}
{{- if include "ponder.isFolder" .values -}}
{{- else if and (eq .root.Values.mode "split") .values.model.tokenizer -}}
{{- else if and (eq .name "policy") (ne $dialect "vllm") -}}
{{- else -}}
true
{{- end -}}
{{- end -}}

{{- define "ponder.anyCopied" -}}
{{- $root := . -}}
{{- range $name := include "ponder.models" . | fromYamlArray -}}
{{- include "ponder.copied" (dict "root" $root "name" $name "values" (get $root.Values $name)) -}}
{{- end -}}
{{- end -}}

{{/* True if the gateway has a volume of tokenizers */}}
{{- define "ponder.tokenizers" -}}
{{- if eq .Values.mode "split" -}}
{{- if or (include "ponder.anyFetched" .) (include "ponder.anyCopied" .) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ponder.anyFetched" -}}
{{- $root := . -}}
{{- range $name := include "ponder.models" . | fromYamlArray -}}
{{- include "ponder.fetched" (dict "root" $root "name" $name "values" (get $root.Values $name)) -}}
{{- end -}}
{{- end -}}

{{- define "ponder.hubEnv" -}}
{{- with .Values.models.hub }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .existingSecretKey }}}
{{- end }}
{{- if .endpoint }}
- {name: HF_ENDPOINT, value: {{ .endpoint | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where vLLM and its compilers write: none of it in the image */}}
{{- define "ponder.engineEnv" -}}
- {name: HOME, value: /cache/home}
- {name: USER, value: ponder}
- {name: XDG_CACHE_HOME, value: /cache/xdg}
- {name: HF_HOME, value: {{ ternary "/models/hub" "/cache/hub" .root.Values.models.persistence.enabled }}}
- {name: VLLM_CACHE_ROOT, value: /cache/vllm}
- {name: VLLM_CONFIG_ROOT, value: /cache/vllm-config}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /cache/inductor}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
{{- if or .root.Values.models.hub.offline (include "ponder.isFolder" .values) }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- if eq .values.device "cpu" }}
- {name: VLLM_CPU_OMP_THREADS_BIND, value: nobind}
- {name: VLLM_ENABLE_V1_MULTIPROCESSING, value: "0"}
{{- /* Else a thread for each core of the node */}}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef: {containerName: {{ .container }}, resource: requests.cpu}
{{- end }}
{{- end -}}

{{- define "ponder.vllmArgs" -}}
{{- $vllm := .values.vllm -}}
{{- if or .root.Values.weights.enabled (eq .values.device "cpu") -}}
- --model={{ .values.model.name }}
{{- else -}}
- serve
- {{ .values.model.name | quote }}
{{- end }}
- --host=0.0.0.0
- --port=8000
- --served-model-name={{ include "ponder.servedName" .values }}
{{- with .values.model.revision }}
- --revision={{ . }}
- --tokenizer-revision={{ . }}
{{- end }}
- --dtype={{ $vllm.dtype }}
{{- with $vllm.maxModelLen }}
- --max-model-len={{ . | int }}
{{- end }}
- --max-num-seqs={{ $vllm.maxNumSeqs | int }}
{{- with include "ponder.kvCacheBytes" .values }}
- --kv-cache-memory-bytes={{ . }}
{{- end }}
{{- if eq .values.device "cpu" }}
- --enforce-eager
- --block-size=32
{{- else }}
- --gpu-memory-utilization={{ $vllm.gpuMemoryUtilization }}
- --tensor-parallel-size={{ .values.gpu.count | int }}
{{- end }}
- --shutdown-timeout={{ .values.drainSeconds | int }}
{{- if $vllm.priority }}
- --scheduling-policy=priority
{{- end }}
{{- range concat $vllm.args $vllm.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}
