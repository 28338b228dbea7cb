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

{{/* Resources with their groups that permissions write without, as a YAML list. */}}
{{- define "portcullis.builtInResources" -}}
- pods
- services
- events
- deployments.apps
- replicasets.apps
{{- end }}
