{{/* The gateway's environment: secrets, and where libraries write. */}}

{{- define "ponder.gatewayEnv" -}}
{{- if eq .Values.mode "single" -}}
{{ include "ponder.engineEnv" (dict "root" . "container" "gateway" "values" (merge (dict "model" (dict "name" "/")) .Values.policy)) }}
{{- else -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /tmp/hub}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- /* Here, since the image sets it in the environment, which goes before the file */}}
- {name: PONDER_TRACES__FOLDER, value: /traces}
{{- with .Values.gateway.auth }}
{{- if or .existingSecret (include "ponder.authenticates" $) }}
- name: PONDER_SERVER__API_KEYS
  valueFrom:
    secretKeyRef: {name: {{ include "ponder.authSecret" $ }}, key: api-keys}
- name: PONDER_SERVER__ADMIN_KEYS
  valueFrom:
    secretKeyRef: {name: {{ include "ponder.authSecret" $ }}, key: admin-keys, optional: true}
{{- end }}
{{- end }}
{{- with .Values.policy.external.existingSecret }}
- name: PONDER_POLICY__API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.policy.external.existingSecretKey }}}
{{- end }}
{{- with .Values.prm.external.existingSecret }}
- name: PONDER_PRM__ENGINE__API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $.Values.prm.external.existingSecretKey }}}
{{- end }}
{{- end -}}

{{- define "ponder.scaled" -}}
{{- with .values.autoscaling -}}
{{- if or .hpa.enabled .keda.enabled -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the chart's own servers say that they serve, a line each */}}
{{- define "ponder.waitedFor" -}}
{{- if eq .Values.mode "split" }}
{{- range $name := list "policy" "prm" }}
{{- if (get $.Values $name).enabled }}
- http://{{ include "ponder.fullname" $ }}-{{ $name }}:8000/health
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A gateway ends if no server of a model serves: it shall not do so over and over while they load */}}
{{- define "ponder.wait" -}}
{{- $part := dict "root" . "name" "gateway" "values" .Values.gateway -}}
- name: wait
  image: {{ include "ponder.image" $part | quote }}
  imagePullPolicy: {{ .Values.gateway.image.pullPolicy }}
  {{- with .Values.gateway.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  command:
    - python3
    - -c
    - |
      import sys, time, urllib.request
      for url in sys.argv[1:]:
          while True:
              try:
                  urllib.request.urlopen(url, timeout=5).close()
                  break
              except OSError as error:
                  print(f"{url}: {error}", flush=True)
                  time.sleep(2)
    {{- include "ponder.waitedFor" . | trim | nindent 4 }}
  resources:
    {{- toYaml .Values.gateway.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end -}}
