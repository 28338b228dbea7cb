{{/* Labels of every object. */}}
{{- define "portcullis.labels" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: portcullis
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Labels by which the operator's pods are found; the selector of a Deployment cannot change. */}}
{{- define "portcullis.selectorLabels" -}}
app.kubernetes.io/name: portcullis
app.kubernetes.io/component: operator
{{- end }}

{{/* The one image of operator and servers. */}}
{{- define "portcullis.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The operator's ServiceAccount: bindings, policies and the operator itself know it by this name. */}}
{{- define "portcullis.serviceAccount" -}}
portcullis-operator
{{- end }}

{{/* The operator as the API server names it. */}}
{{- define "portcullis.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "portcullis.serviceAccount" . }}
{{- end }}

{{/* Puts the policy of the same name in force. */}}
{{- define "portcullis.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "portcullis.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}

{{/* Limits a policy to what the operator writes. */}}
{{- define "portcullis.byOperator" -}}
- name: by-operator
  expression: request.userInfo.username == '{{ include "portcullis.operatorUser" . }}'
{{- end }}
