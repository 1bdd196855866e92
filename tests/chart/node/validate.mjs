// Validates custom resources by the schemas of their operators: validate.mjs FILE (a JSON array).
import { readFileSync } from "node:fs";
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1";
import {
  PrometheusRule,
  ServiceMonitor,
} from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const kinds = { HTTPRoute, PrometheusRule, ScaledObject, ServiceMonitor };
const objects = JSON.parse(readFileSync(process.argv[2], "utf8"));
let valid = 0;
for (const object of objects) {
  try {
    new kinds[object.kind](object).validate();
    valid += 1;
  } catch (error) {
    console.error(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}
console.log(`${valid} valid`);
process.exit(valid === objects.length ? 0 : 1);
