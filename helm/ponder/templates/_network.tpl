{{/* Rules of NetworkPolicies, each a list item. */}}

{{- define "ponder.egressDns" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end -}}

{{- define "ponder.egressTo" -}}
- ports: [{port: {{ .port }}, protocol: TCP}]
  to:
    - podSelector:
        matchLabels:
          {{- include "ponder.selector" . | nindent 10 }}
{{- end -}}

{{/* Where a URL leads is not known by address: its port, anywhere */}}
{{- define "ponder.egressUrl" -}}
{{- $url := urlParse . -}}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $known := dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" -}}
- ports: [{port: {{ $given | default (get $known $url.scheme) }}, protocol: TCP}]
{{- end -}}

{{/* The servers of policy and PRM */}}
{{- define "ponder.egressModels" -}}
{{- if eq .Values.mode "split" -}}
{{- range $name := include "ponder.models" . | fromYamlArray }}
{{- $engine := get $.Values $name }}
{{- if $engine.enabled }}
{{ include "ponder.egressTo" (dict "root" $ "name" $name "port" "http") }}
{{- else }}
{{ include "ponder.egressUrl" $engine.external.url }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "ponder.egressRedis" -}}
{{- if .Values.redis.enabled -}}
{{ include "ponder.egressTo" (dict "root" . "name" "redis" "port" "redis") }}
{{- else if .Values.redis.external.url -}}
{{ include "ponder.egressUrl" .Values.redis.external.url }}
{{- end -}}
{{- end -}}

{{/* An object store, wherever it is */}}
{{- define "ponder.egressStore" -}}
{{- if contains "://" .Values.traces.store -}}
{{ include "ponder.egressUrl" "https://store" }}
{{- end -}}
{{- end -}}

{{- define "ponder.egressHub" -}}
{{- with .Values.networkPolicy.hubEgress -}}
{{ toYaml . }}
{{- else -}}
{{ include "ponder.egressUrl" (.Values.models.hub.endpoint | default "https://hub") }}
{{- end -}}
{{- end -}}

{{/* The pods of a group, among themselves: their collectives take any port */}}
{{- define "ponder.group" -}}
{{- $part := .part -}}
- {{ .way }}:
    {{- range list $part.name (printf "%s-worker" $part.name) }}
    - podSelector:
        matchLabels:
          {{- include "ponder.selector" (dict "root" $part.root "name" .) | nindent 10 }}
    {{- end }}
{{- end -}}
