{{- define "ponder.notes" -}}
{{- $service := printf "%s-gateway" (include "ponder.fullname" .) -}}
Ponder {{ .Chart.AppVersion }} is at http://{{ $service }}.{{ .Release.Namespace }}:{{ .Values.gateway.service.port | int }}/v1
{{- range .Values.gateway.ingress.hosts }}{{ if $.Values.gateway.ingress.enabled }}
and http{{ if $.Values.gateway.ingress.tls }}s{{ end }}://{{ . }}/v1
{{- end }}{{ end }}

  kubectl -n {{ .Release.Namespace }} rollout status deployment/{{ $service }} --timeout=15m
  helm -n {{ .Release.Namespace }} test {{ .Release.Name }}
  kubectl -n {{ .Release.Namespace }} port-forward service/{{ $service }} 8000:{{ .Values.gateway.service.port | int }}
  ponder ask "Use 4 9 10 13 to make 24." --url http://127.0.0.1:8000
{{- if not (include "ponder.authenticates" .) }}

It asks for no key: whoever reaches the Service may use it. `gateway.auth` sets keys.
{{- end }}
{{- if not (include "ponder.shared" .) }}

It is one replica with its state in itself. Several need `redis`.
{{- end }}
{{- if not .Values.traces.persistence.enabled }}

Traces have no claim: they go with the pod.
{{- end }}
{{- if and .Values.redis.enabled (not .Values.redis.persistence.enabled) }}

Redis has no claim: what is in it goes with the pod.
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.gatewayFrom }}

The gateway takes connections only from `networkPolicy.gatewayFrom` and this release.
{{- end }}
{{- end -}}
