{{/* Generated from the code by `just generate`; edit the code instead.
     Names of the built-in catalogue's ClusterRoles, as a YAML list. */}}
{{- define "portcullis.builtInCatalogue" -}}
- portcullis:catalogue:pods:get
- portcullis:catalogue:pods:list
- portcullis:catalogue:pods:watch
- portcullis:catalogue:pods:logs
- portcullis:catalogue:pods:restart
- portcullis:catalogue:pods:delete
- portcullis:catalogue:services:get
- portcullis:catalogue:services:list
- portcullis:catalogue:events:get
- portcullis:catalogue:events:list
- portcullis:catalogue:deployments:get
- portcullis:catalogue:deployments:list
- portcullis:catalogue:deployments:scale
- portcullis:catalogue:deployments:restart
- portcullis:catalogue:replicasets:get
- portcullis:catalogue:replicasets:list
{{- end }}

{{/* Permissions of the built-in catalogue, as a YAML list. */}}
{{- define "portcullis.builtInPermissions" -}}
- k8s:namespaces:list
- k8s:pods:get
- k8s:pods:list
- k8s:pods:watch
- k8s:pods:logs
- k8s:pods:restart
- k8s:pods:delete
- k8s:services:get
- k8s:services:list
- k8s:events:get
- k8s:events:list
- k8s:deployments:get
- k8s:deployments:list
- k8s:deployments:scale
- k8s:deployments:restart
- k8s:replicasets:get
- k8s:replicasets:list
- mcp:tools:access_whoami
{{- end }}

{{/* Resources with their groups that permissions write without, as YAML: what is known about them. */}}
{{- define "portcullis.builtInObjects" -}}
pods: {kind: Pod, version: v1, scope: Namespaced}
services: {kind: Service, version: v1, scope: Namespaced}
events: {kind: Event, version: v1, scope: Namespaced}
deployments.apps: {kind: Deployment, version: v1, scope: Namespaced}
replicasets.apps: {kind: ReplicaSet, version: v1, scope: Namespaced}
{{- end }}
