"""Helm's post-renderer for Kubernetes before 1.21: the API versions that it serves."""

import sys

import yaml

SERVED = {
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",
    ("batch/v1", "CronJob"): "batch/v1beta1",
}

if __name__ == "__main__":
    objects = [found for found in yaml.safe_load_all(sys.stdin) if found]
    for found in objects:
        asked = found["apiVersion"]
        found["apiVersion"] = SERVED.get((asked, found["kind"]), asked)
    yaml.safe_dump_all(objects, sys.stdout)
