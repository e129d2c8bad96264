{{/* Labels of every object: patchwarden.labels (dict "root" $ "component" "gateway") */}}
{{- define "patchwarden.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: patchwarden
{{ include "patchwarden.selector" . }}
{{- end }}

{{/* What selects the pods of a component. The kubectl plugin finds gateways by their name. */}}
{{- define "patchwarden.selector" -}}
app.kubernetes.io/name: patchwarden-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* The image of a component: patchwarden.image (dict "root" $ "component" "gateway") */}}
{{- define "patchwarden.image" -}}
{{- $override := (index .root.Values .component).image }}
{{- $override | default (printf "%s/patchwarden-%s:%s" .root.Values.image.registry .component (.root.Values.image.tag | default .root.Chart.AppVersion)) }}
{{- end }}

{{/* What controller and gateway pods have in common. */}}
{{- define "patchwarden.pod" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: patchwarden-{{ .component }}
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "patchwarden.priorityClass" .root }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # A volume with many files is not gone through at each start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if $values.topologySpreadConstraints }}
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "patchwarden.selector" . | nindent 8 }}
  {{- end }}
{{- end }}

{{/* The security context of every container: Pod Security Standard "restricted", and nothing to write to. */}}
{{- define "patchwarden.container.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "patchwarden.priorityClass" -}}
{{- if .Values.priorityClass.name }}
{{- .Values.priorityClass.name }}
{{- else if .Values.priorityClass.create }}
{{- print "patchwarden" }}
{{- end }}
{{- end }}

{{/* Labels and annotations of a pod template. */}}
{{- define "patchwarden.pod.metadata" -}}
{{- $values := index .root.Values .component -}}
labels:
  {{- include "patchwarden.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Who may reach the metrics: with the pod of `helm test`, if it is not everybody. */}}
{{- define "patchwarden.metricsFrom" -}}
{{- with .Values.networkPolicy.metricsFrom }}
from:
  {{- toYaml . | nindent 2 }}
  - podSelector:
      matchLabels:
        {{- include "patchwarden.selector" (dict "root" $ "component" "test") | nindent 8 }}
{{- end }}
{{- end }}

{{- /* Where traces go, for the environment of controller and gateway; nothing without an endpoint. */ -}}
{{- define "patchwarden.telemetry" -}}
{{- $traces := .Values.telemetry.traces -}}
{{- if $traces.endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $traces.endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ divf $traces.percent 100 | quote }}
{{- with $traces.resourceAttributes }}
{{- $pairs := list }}
{{- range $name, $value := . }}
{{- $pairs = append $pairs (printf "%s=%s" $name (urlquery $value | replace "+" "%20")) }}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $pairs | quote }}
{{- end }}
{{- with $traces.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $traces.headersKey | quote }}
{{- end }}
{{- end -}}
{{- end -}}
