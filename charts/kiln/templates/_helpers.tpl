{{/* Names, labels and image references that several templates share. */}}

{{- define "kiln.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kiln.selector" -}}
app.kubernetes.io/name: kiln
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "kiln.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: kiln
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "kiln.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "kiln.fullname" .) -}}
{{- end -}}

{{/* kiln.image (list image appVersion): repository with digest or tag. */}}
{{- define "kiln.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 1)) -}}
{{- end -}}
{{- end -}}

{{/* kiln.names: the names of a list of references, separated by commas. */}}
{{- define "kiln.names" -}}
{{- range $i, $reference := . -}}
{{- if $i }},{{ end }}{{ $reference.name }}
{{- end -}}
{{- end -}}

{{/* kiln.only (list family cidrs): a JSON list of those that are of the address family "4" or "6". */}}
{{- define "kiln.only" -}}
{{- $family := index . 0 -}}
{{- $found := list -}}
{{- range index . 1 -}}
{{- if eq (contains ":" .) (eq $family "6") -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- $found | uniq | toJson -}}
{{- end -}}

{{/* kiln.architectures: a JSON list of the architectures of the nodes that the pool may use. Empty where nodes cannot be
     looked up, as by `helm template`. To install the chart takes the right to list them anyway, for it gives that right to
     the operator. */}}
{{- define "kiln.architectures" -}}
{{- $spec := .Values.builderPool.spec -}}
{{- $found := list -}}
{{- range dig "items" list (lookup "v1" "Node" "" "") -}}
{{- $labels := .metadata.labels | default dict -}}
{{- $architecture := get $labels "kubernetes.io/arch" -}}
{{- $usable := eq (get $labels "kubernetes.io/os") "linux" -}}
{{- range $key, $value := ($spec.template).nodeSelector -}}
{{- $usable = and $usable (eq (get $labels $key) $value) -}}
{{- end -}}
{{- if and $usable (has $architecture ($spec.architectures | default (list $architecture))) -}}
{{- $found = append $found $architecture -}}
{{- end -}}
{{- end -}}
{{- $found | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* kiln.unserved (list platforms architectures): a JSON list of the platforms whose programs no node of these
     architectures runs; those of other systems run none. */}}
{{- define "kiln.unserved" -}}
{{- $architectures := index . 1 -}}
{{- $also := dict "386" "amd64" "aarch64" "arm64" "arm" "arm64" "x86_64" "amd64" -}}
{{- $found := list -}}
{{- range index . 0 -}}
{{- $architecture := index (splitList "/" .) 1 -}}
{{- $served := or (has $architecture $architectures) (has (get $also $architecture) $architectures) -}}
{{- if and (hasPrefix "linux/" .) (not $served) -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}
