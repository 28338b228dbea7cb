{{/* Permissions that the values add to the catalogue, as a JSON list: "name" is the resource as permissions write it,
     "pattern" a regular expression of all its ways to be written, "verb" that of the permission, "verbs" those of the
     API server. The operator refuses the same mistakes when it starts; here they stop Helm. */}}
{{- define "portcullis.extension" -}}
{{- $objects := include "portcullis.builtInObjects" . | fromYaml }}
{{- $permissions := include "portcullis.builtInPermissions" . | fromYamlArray }}
{{- $builtIn := keys $objects }}
{{- $found := list }}
{{- range .Values.catalogue.extra }}
{{- $group := default "" .group }}
{{- if and (eq $group "") (eq .resource "secrets") }}
{{- fail "catalogue.extra: permissions on Secrets are added by catalogue.secrets" }}
{{- end }}
{{- if and (eq $group "") (eq .resource "resources") }}
{{- fail "catalogue.extra: in a permission, \"resources\" stands for every resource of catalogue.extra" }}
{{- end }}
{{- $qualified := ternary .resource (printf "%s.%s" .resource $group) (eq $group "") }}
{{- $object := pick . "kind" "version" "scope" }}
{{- $known := default $object (get $objects $qualified) }}
{{- if ne ($object | toJson) ($known | toJson) }}
{{- fail (printf "catalogue.extra: %s is %s of version %s with scope %s" $qualified $known.kind $known.version $known.scope) }}
{{- end }}
{{- $_ := set $objects $qualified $object }}
{{- $name := ternary .resource $qualified (has $qualified $builtIn) }}
{{- $pattern := $qualified | replace "." "[.]" }}
{{- if ne $name $qualified }}
{{- $pattern = printf "%s([.]%s)?" .resource ($group | replace "." "[.]") }}
{{- end }}
{{- $resource := .resource }}
{{- range .verbs }}
{{- $permission := printf "k8s:%s:%s" $name . }}
{{- if has $permission $permissions }}
{{- fail (printf "catalogue.extra: %s is in the catalogue already" $permission) }}
{{- end }}
{{- if gt (len $permission) 128 }}
{{- fail (printf "catalogue.extra: %s is too long for a permission" $permission) }}
{{- end }}
{{- $permissions = append $permissions $permission }}
{{- $role := printf "portcullis:catalogue:%s:%s" $name . }}
{{- $found = append $found (dict "role" $role "name" $name "qualified" $qualified "pattern" $pattern "group" $group "resource" $resource "verb" . "verbs" (list .) "extra" true) }}
{{- end }}
{{- end }}
{{- $secret := dict "name" "secrets" "qualified" "secrets" "pattern" "secrets" "group" "" "resource" "secrets" "extra" false }}
{{- if .Values.catalogue.secrets.read }}
{{- $found = append $found (merge (dict "role" "portcullis:catalogue:secrets:get" "verb" "get" "verbs" (list "get")) $secret) }}
{{- $found = append $found (merge (dict "role" "portcullis:catalogue:secrets:list" "verb" "list" "verbs" (list "list")) $secret) }}
{{- end }}
{{- if .Values.catalogue.secrets.manage }}
{{- $found = append $found (merge (dict "role" "portcullis:catalogue:secrets:manage" "verb" "manage" "verbs" (list "create" "update" "delete")) $secret) }}
{{- end }}
{{- if gt (len $found) 200 }}
{{- fail "catalogue: it is extended by more than 200 permissions" }}
{{- end }}
{{- $found | toJson }}
{{- end }}

{{/* Rights on the cluster behind those permissions, as a JSON list: "verb" of the API server, "of" the permission. */}}
{{- define "portcullis.extensionRights" -}}
{{- $rights := list }}
{{- range $permission := include "portcullis.extension" . | fromJsonArray }}
{{- range .verbs }}
{{- $rights = append $rights (dict "verb" . "of" $permission) }}
{{- end }}
{{- end }}
{{- $rights | toJson }}
{{- end }}

{{/* Verbs by the resource, in every way in which permissions write it, as JSON. */}}
{{- define "portcullis.extensionVerbs" -}}
{{- $verbs := dict }}
{{- range $permission := include "portcullis.extension" . | fromJsonArray }}
{{- $names := list "*" .name .qualified }}
{{- if .extra }}
{{- $names = append $names "resources" }}
{{- end }}
{{- range $names | uniq }}
{{- $_ := set $verbs . (append (default (list "*") (get $verbs .)) $permission.verb | uniq) }}
{{- end }}
{{- end }}
{{- $verbs | toJson }}
{{- end }}

{{/* Names of the catalogue's ClusterRoles, as a YAML list. */}}
{{- define "portcullis.catalogue" -}}
{{ include "portcullis.builtInCatalogue" . }}
{{- range include "portcullis.extension" . | fromJsonArray }}
- {{ .role }}
{{- end }}
{{- end }}
