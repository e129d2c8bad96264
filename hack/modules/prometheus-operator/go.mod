// Pins the Prometheus operator whose kinds the chart is checked against; nothing of it is built, or linked into Patchwarden.
module patchwarden.io/hack/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
