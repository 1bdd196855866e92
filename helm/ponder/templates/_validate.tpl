{{/* Values that contradict each other: all that is wrong, at once, each by the names of its values. */}}

{{- define "ponder.validateValues" -}}
{{- $problems := list -}}
{{- range list "gateway" "engines" "scaling" "redis" "storage" "trainer" -}}
{{- range include (printf "ponder.validate.%s" .) $ | splitList "\n" -}}
{{- with trim . -}}{{- $problems = append $problems (printf "  - %s" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $problems -}}
{{- printf "\nthese values cannot be used:\n%s" (join "\n" $problems) | fail -}}
{{- end -}}
{{- end -}}

{{- define "ponder.validate.gateway" -}}
{{- $gateway := .Values.gateway -}}
{{- $longest := dig "limits" "seconds" 120 $gateway.settings -}}
{{- if gt (float64 $longest) (float64 $gateway.drainSeconds) }}
gateway.drainSeconds is {{ $gateway.drainSeconds }}: a search may last {{ $longest }} s (gateway.settings.limits.seconds)
{{- end }}
{{- range $key, $why := dict
  "server.host" "the chart sets it"
  "server.port" "the chart sets it; gateway.service.port is the Service's"
  "server.drain_seconds" "set gateway.drainSeconds"
  "server.api_keys" "keys belong in a Secret: gateway.auth"
  "server.admin_keys" "keys belong in a Secret: gateway.auth"
  "policy.api_key" "keys belong in a Secret: policy.external.existingSecret"
  "prm.engine.api_key" "keys belong in a Secret: prm.external.existingSecret"
  "orm.engine.api_key" "keys belong in a Secret: PONDER_ORM__ENGINE__API_KEY in gateway.extraEnv"
  "judge.api_key" "keys belong in a Secret: PONDER_JUDGE__API_KEY in gateway.extraEnv"
  "policy.kind" "set mode"
  "policy.url" "set policy.external.url"
  "policy.model" "set policy.model"
  "prm.engine.kind" "set mode"
  "prm.engine.url" "set prm.external.url"
  "prm.engine.model" "set prm.model"
  "redis" "set redis"
  "traces.folder" "the chart sets it"
  "traces.store" "set traces.store"
  "weights" "set weights"
}}
{{- $node := $gateway.settings -}}
{{- range splitList "." $key -}}
{{- if kindIs "map" $node -}}{{- $node = get $node . -}}{{- else -}}{{- $node = "" -}}{{- end -}}
{{- end -}}
{{- if not (eq (toString $node) "") }}
gateway.settings.{{ $key }}: {{ $why }}
{{- end }}
{{- end }}
{{- if and $gateway.auth.existingSecret (or $gateway.auth.apiKeys $gateway.auth.adminKeys $gateway.auth.probeKey) }}
gateway.auth: existingSecret, or apiKeys, adminKeys and probeKey, not both
{{- end }}
{{- if and (include "ponder.authenticates" .) (not $gateway.auth.existingSecret) }}
{{- if and (not $gateway.auth.probeKey) (or .Values.tests.enabled $gateway.serviceMonitor.enabled) }}
gateway.auth.probeKey is empty: Prometheus and `helm test` need a key (or tests.enabled=false and gateway.serviceMonitor.enabled=false)
{{- end }}
{{- end }}
{{- $ways := dict "ingress" $gateway.ingress.enabled "httpRoute" $gateway.httpRoute.enabled "service.type" (ne $gateway.service.type "ClusterIP") -}}
{{- range $way, $open := $ways -}}
{{- if and $open (not (include "ponder.authenticates" $)) (not $gateway.auth.anonymous) }}
gateway.{{ $way }} leads to a gateway that asks for no key: set gateway.auth, or gateway.auth.anonymous=true
{{- end }}
{{- end }}
{{- if and $gateway.auth.adminKeys (not (or $gateway.auth.apiKeys $gateway.auth.probeKey)) }}
gateway.auth.adminKeys alone leave every other route without a key: set gateway.auth.apiKeys
{{- end }}
{{- if and $gateway.ingress.enabled (not $gateway.ingress.hosts) }}
gateway.ingress.hosts is empty
{{- end }}
{{- if and $gateway.httpRoute.enabled (not $gateway.httpRoute.parentRefs) }}
gateway.httpRoute.parentRefs is empty
{{- end }}
{{- end -}}

{{- define "ponder.validate.engines" -}}
{{- range $name := list "policy" "prm" }}
{{- $engine := get $.Values $name }}
{{- if and $engine.enabled $engine.external.url }}
{{ $name }}.external.url is of a server that is there already: set {{ $name }}.enabled=false
{{- end }}
{{- if contains "@" $engine.external.url }}
{{ $name }}.external.url holds a user or password: a key belongs in {{ $name }}.external.existingSecret
{{- end }}
{{- if and $engine.external.existingSecret (not $engine.external.url) }}
{{ $name }}.external.existingSecret is for {{ $name }}.external.url
{{- end }}
{{- if and $engine.multiNode.enabled (ne $engine.device "gpu") }}
{{ $name }}.multiNode is for device gpu
{{- end }}
{{- if and $engine.multiNode.enabled $.Values.weights.enabled }}
{{ $name }}.multiNode cannot follow weights: weights.enabled=false
{{- end }}
{{- if and $engine.multiNode.enabled (lt (int $engine.multiNode.size) 2) }}
{{ $name }}.multiNode.size is {{ $engine.multiNode.size }}: a group has 2 pods or more
{{- end }}
{{- if and $.Values.models.hub.offline (not (include "ponder.isFolder" $engine)) (or $engine.enabled (and $engine.external.url (not $engine.model.tokenizer))) }}
{{ $name }}.model.name is {{ $engine.model.name }}, a hub's, but models.hub.offline: name a folder, such as /models/NAME
{{- end }}
{{- if and $engine.model.revision (include "ponder.isFolder" $engine) }}
{{ $name }}.model.revision is a hub's, but {{ $name }}.model.name is a folder
{{- end }}
{{- end }}
{{- if not (or .Values.policy.enabled .Values.policy.external.url) }}
policy.enabled is false and policy.external.url empty: there is no policy
{{- end }}
{{- if eq .Values.mode "single" }}
{{- if not .Values.policy.enabled }}
mode single runs the policy itself: policy.enabled=true
{{- end }}
{{- if .Values.prm.external.url }}
mode single runs the PRM itself: no prm.external.url
{{- end }}
{{- if and .Values.prm.enabled (ne .Values.policy.device .Values.prm.device) }}
mode single has one device: policy.device is {{ .Values.policy.device }}, prm.device {{ .Values.prm.device }}
{{- end }}
{{- if or .Values.policy.multiNode.enabled .Values.prm.multiNode.enabled }}
mode single has no multiNode
{{- end }}
{{- range $name := list "policy" "prm" }}
{{- $engine := get $.Values $name }}
{{- $unused := dict "vllm.extraArgs" $engine.vllm.extraArgs "model.tokenizer" $engine.model.tokenizer "extraEnv" $engine.extraEnv "nodeSelector" $engine.nodeSelector "tolerations" $engine.tolerations }}
{{- range $key, $value := $unused }}
{{- if $value }}
{{ $name }}.{{ $key }} has no effect in mode single, where there is nothing but the gateway: see gateway.settings and gateway
{{- end }}
{{- end }}
{{- end }}
{{- if eq (toString .Values.gateway.resources.limits.memory) "2Gi" }}
gateway.resources.limits.memory is 2Gi: in mode single both models are in the gateway's memory, 6Gi for the reference pair
{{- end }}
{{- if and .Values.prm.enabled (eq .Values.policy.device "gpu") (gt (addf (float64 .Values.policy.vllm.gpuMemoryUtilization) (float64 .Values.prm.vllm.gpuMemoryUtilization)) 0.95) }}
policy.vllm.gpuMemoryUtilization and prm.vllm.gpuMemoryUtilization share one GPU in mode single: together 0.95 at most
{{- end }}
{{- end }}
{{- end -}}

{{- define "ponder.validate.scaling" -}}
{{- range $name := list "gateway" "policy" "prm" "redis" }}
{{- $values := get $.Values $name }}
{{- if and (not (kindIs "invalid" $values.pdb.minAvailable)) (not (kindIs "invalid" $values.pdb.maxUnavailable)) }}
{{ $name }}.pdb: minAvailable or maxUnavailable, not both (set the other to null)
{{- end }}
{{- if and $values.pdb.enabled (kindIs "invalid" $values.pdb.minAvailable) (kindIs "invalid" $values.pdb.maxUnavailable) }}
{{ $name }}.pdb: minAvailable or maxUnavailable
{{- end }}
{{- if hasKey $values "drainSeconds" }}
{{- $needed := add (int $values.preStopSeconds) (int $values.drainSeconds) }}
{{- if le (int $values.terminationGracePeriodSeconds) (int $needed) }}
{{ $name }}.terminationGracePeriodSeconds is {{ $values.terminationGracePeriodSeconds }}: must be more than preStopSeconds + drainSeconds, {{ $needed }}
{{- end }}
{{- end }}
{{- with $values.autoscaling }}
{{- if and .hpa.enabled .keda.enabled }}
{{ $name }}.autoscaling: hpa or keda, not both: KEDA makes an HPA of its own
{{- end }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{ $name }}.autoscaling.minReplicas is {{ .minReplicas }}, above maxReplicas, {{ .maxReplicas }}
{{- end }}
{{- if and .keda.enabled (contains "SERVICE" .keda.query) (not $values.serviceMonitor.enabled) }}
{{ $name }}.autoscaling.keda.query asks for what {{ $name }}.serviceMonitor collects: set {{ $name }}.serviceMonitor.enabled=true, or another query
{{- end }}
{{- if and .hpa.enabled (not .hpa.metrics) }}
{{ $name }}.autoscaling.hpa.metrics is empty
{{- end }}
{{- if and (ne $name "gateway") (eq $.Values.mode "single") (or .hpa.enabled .keda.enabled) }}
{{ $name }}.autoscaling: in mode single there is nothing but the gateway
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ponder.validate.redis" -}}
{{- $redis := .Values.redis -}}
{{- $gateway := .Values.gateway -}}
{{- $scaled := include "ponder.scaled" (dict "values" $gateway) -}}
{{- if and (not (include "ponder.shared" .)) (or $scaled (gt (int $gateway.replicaCount) 1)) }}
several gateways share quotas, traces and versions in Redis: set redis.enabled=true or redis.external.url (or gateway.replicaCount=1 without autoscaling)
{{- end }}
{{- if and $redis.enabled $redis.external.url }}
redis.enabled is the chart's own Valkey, redis.external.url another: one of them
{{- end }}
{{- if and $redis.external.existingSecret (not $redis.external.url) }}
redis.external.existingSecret is for redis.external.url
{{- end }}
{{- $tls := $redis.external.tls -}}
{{- if and $tls.existingSecret (not (hasPrefix "rediss://" $redis.external.url)) }}
redis.external.tls is for a redis.external.url of rediss://
{{- end }}
{{- if ne (empty $tls.certKey) (empty $tls.privateKey) }}
redis.external.tls: certKey and privateKey go together
{{- end }}
{{- if and (include "ponder.compacts" .) (not (include "ponder.store" .)) }}
compactor.enabled has nowhere to write: set traces.persistence.enabled=true or traces.store (or compactor.enabled=false)
{{- end }}
{{- if and .Values.traces.store (not (include "ponder.shared" .)) }}
traces.store is for several gateways: set redis
{{- end }}
{{- if contains "@" $redis.external.url }}
redis.external.url holds a user or password: they belong in redis.external.username and redis.external.existingSecret
{{- end }}
{{- if and $redis.enabled $redis.auth.enabled (not $redis.auth.existingSecret) (not $redis.auth.password) }}
redis.auth: set existingSecret or password (or enabled=false)
{{- end }}
{{- if and $redis.auth.existingSecret $redis.auth.password }}
redis.auth: existingSecret or password, not both
{{- end }}
{{- end -}}

{{- define "ponder.validate.storage" -}}
{{- $split := eq .Values.mode "split" -}}
{{- $gateways := or (gt (int .Values.gateway.replicaCount) 1) (include "ponder.scaled" (dict "values" .Values.gateway)) -}}
{{- $mounts := dict
  "models" (and .Values.models.persistence.enabled (or $split $gateways))
  "traces" (and (include "ponder.claimsTraces" .) (or .Values.trainer.enabled (include "ponder.archives" .)))
  "weights" .Values.weights.enabled
}}
{{- range $name, $several := $mounts }}
{{- $persistence := (get $.Values $name).persistence }}
{{- if and $several (not $persistence.existingClaim) (not (has "ReadWriteMany" $persistence.accessModes)) }}
{{ $name }}.persistence.accessModes: several pods mount it, maybe on several nodes: ReadWriteMany, or an existingClaim (a claim that is there keeps its modes: then an existingClaim, or another fullnameOverride)
{{- end }}
{{- end }}
{{- if and .Values.models.persistence.readOnly (not .Values.models.persistence.existingClaim) }}
models.persistence.readOnly: a new claim would stay empty; name an existingClaim
{{- end }}
{{- if and .Values.models.persistence.readOnly (include "ponder.readsHub" .) }}
models.persistence.readOnly: a hub's model is downloaded into the claim; name a folder as model.name
{{- end }}
{{- end -}}

{{- define "ponder.readsHub" -}}
{{- range $name := list "policy" "prm" -}}
{{- $engine := get $.Values $name -}}
{{- if and $engine.enabled (not (include "ponder.isFolder" $engine)) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ponder.validate.trainer" -}}
{{- $trainer := .Values.trainer -}}
{{- if $trainer.enabled }}
{{- if not .Values.weights.enabled }}
trainer.enabled publishes to the claim of weights: set weights.enabled=true
{{- end }}
{{- $said := toJson (list $trainer.steps $trainer.config) }}
{{- if and (not (include "ponder.claimsTraces" .)) (regexMatch `"/traces["/]` $said) }}
trainer.config or steps read /traces, which is no claim here: set traces.persistence.enabled=true, or with traces.store name its URL there
{{- end }}
{{- if regexMatch `rediss?://[^"/]*@` $said }}
trainer.config or steps hold a user or password of Redis: it is the release's own where the URL has none
{{- end }}
{{- end }}
{{- if and $trainer.timeZone (not $trainer.schedule) }}
trainer.timeZone is for trainer.schedule
{{- end }}
{{- end -}}
