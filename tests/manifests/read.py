"""Reads the manifests in the README, validates each, alone or as the patch that it is, against
Kubernetes' schemas, and tells for every pod with a sidecar how that is started and asked:

    read.py README VERSION

One line for each fact, its words separated by tabs; a pod begins with the line `pod`. Ends with 1 and a
sentence when a manifest is wrong.
"""

import copy
import pathlib
import re
import sys

import kubernetes_validate
import yaml

KUBERNETES = ["1.34", "1.37"]
GATEWAY = "gateway.envoyproxy.io/v1alpha1"


class Loader(yaml.SafeLoader):
    """Refuses what it would take the last of: a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
        return super().construct_mapping(node, deep)


def load(text):
    return [manifest for manifest in yaml.load_all(text, Loader) if manifest]


def patched(base, patch):
    """A strategic merge: of lists whose items have names, those of one name are merged."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: patched(base.get(key), patch[key]) if key in patch else base[key] for key in base | patch}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in base + patch):
        merged = {item["name"]: item for item in base}
        for item in patch:
            assert item["name"] in merged, f"there is nothing called {item['name']} to patch"
            merged[item["name"]] = patched(merged[item["name"]], item)
        return list(merged.values())
    return patch


def validate(manifest):
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.path))
            raise AssertionError(f"Kubernetes {version}: {place}: {error.message}") from error


def tell(manifest, image, *source):
    """What Rust is to check: command lines, hooks, probes and times."""
    validate(manifest)
    pod = manifest["spec"].get("template", manifest)["spec"]
    containers = pod.get("initContainers", []) + pod["containers"]
    (manager,) = [one for one in containers if one["name"] == "shutdown-manager"]
    (envoy,) = [one for one in containers if one["name"] == "envoy"]
    assert [one["name"] for one in containers if one["image"] == image] == ["shutdown-manager"]
    user = [one.get("securityContext", {}).get("runAsUser", pod.get("securityContext", {}).get("runAsUser"))
            for one in (manager, envoy)]
    assert user[0] == user[1] is not None, f"they run as {user}: the sidecar cannot reach Envoy"
    print("pod", *source, manifest["metadata"]["name"], sep="\t")
    print("grace", pod["terminationGracePeriodSeconds"], sep="\t")
    print("network", "host" if pod.get("hostNetwork") else "own", sep="\t")
    print("sidecar", *manager["command"], *manager["args"], sep="\t")
    print("hook", *manager["lifecycle"]["preStop"]["exec"]["command"], sep="\t")
    for kind, asked in [("waits", envoy["lifecycle"]["preStop"]), ("probe", manager.get("livenessProbe"))]:
        if asked:
            get = asked["httpGet"]
            print(kind, get.get("host", ""), get["path"], get["port"], sep="\t")


def hardened(pod):
    """What the Pod Security level `restricted` asks for, and a root that is not written."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["initContainers"] + spec["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]


def seconds(duration):
    assert re.fullmatch(r"\d{1,5}s", duration), f"{duration} is not so many seconds"
    return int(duration[:-1])


def gateway_pod(base, shutdown):
    """What Envoy Gateway makes of an EnvoyProxy's `shutdown`."""
    pod = base["spec"]["template"]["spec"]
    manager = pod["containers"][0]
    hook = manager["lifecycle"]["preStop"]["exec"]["command"]
    names = {
        "healthCheckFailureDelay": "health-check-failure-delay",
        "drainTimeout": "drain-timeout",
        "minDrainDuration": "min-drain-duration",
    }
    for field, duration in shutdown.items():
        hook.append(f"--{names[field]}={seconds(duration)}s")
    timeout = seconds(shutdown["drainTimeout"])
    manager["args"].append(f"--ready-timeout={timeout + 10}s")
    pod["terminationGracePeriodSeconds"] = timeout + 300
    return base


def main(readme, version):
    text = pathlib.Path(readme).read_text()
    image = f"registry.example/envoy-shutdown-manager:{version}"
    named = re.findall(r"[\w./-]*/envoy-shutdown-manager:[\w.-]+", text)
    assert set(named) == {image}, f"images: {set(named)}"
    contour, chart, gateway = load(pathlib.Path(__file__).with_name("theirs.yaml").read_text())
    seen = {}
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", text, re.S | re.M), 1):
        for manifest in load(block):
            kind = manifest["kind"]
            try:
                one(kind, manifest, seen, image, contour, chart, gateway)
            except (AssertionError, LookupError, TypeError) as error:
                raise AssertionError(f"yaml block {number}, {kind}: {error!r}") from error
    (line,) = re.findall(r"^    kubectl (.*) set image (.*)$", text, re.M)
    assert line == ("-n projectcontour", f"daemonset/envoy shutdown-manager={image}"), line
    missing = {"Pod", "patch of Pod", "DaemonSet", "Kustomization", "EnvoyGateway", "EnvoyProxy"} - seen.keys()
    assert not missing, f"the README has no {missing}"


def one(kind, manifest, seen, image, contour, chart, gateway):
    same = lambda base: [base["metadata"].get(key) == manifest["metadata"].get(key) for key in ("name", "namespace")]
    if kind == "Pod" and kind in seen:
        assert all(same(seen[kind])), "it patches another pod"
        tell(patched(seen[kind], manifest), image, "patched")
        kind = "patch of Pod"
    elif kind == "Pod":
        hardened(manifest)
        tell(manifest, image)
    elif kind == "DaemonSet":
        assert all(same(contour)), "it patches another DaemonSet"
        tell(patched(contour, manifest), image, "contour")
    elif kind == "Kustomization":
        assert manifest["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
        (entry,) = manifest["patches"]
        assert entry.keys() == {"target", "patch"} and manifest.keys() == {"apiVersion", "kind", "resources", "patches"}, "fields"
        label, value = entry["target"].pop("labelSelector").split("=")
        assert entry["target"] == {"kind": chart["kind"]} and chart["metadata"]["labels"][label] == value
        (patch,) = load(entry["patch"])
        # Kustomize goes by the target, and lets the name be.
        tell(patched(chart, {"spec": patch["spec"]}), image, "chart")
    elif kind == "EnvoyGateway":
        assert manifest == {
            "apiVersion": GATEWAY,
            "kind": kind,
            "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "provider": {"type": "Kubernetes", "kubernetes": {"shutdownManager": {"image": image}}},
        }, "it is not Envoy Gateway's"
    elif kind == "EnvoyProxy":
        assert manifest["apiVersion"] == GATEWAY and manifest["spec"].keys() == {"shutdown"}
        pod = gateway_pod(copy.deepcopy(gateway), manifest["spec"]["shutdown"])
        pod["spec"]["template"]["spec"]["containers"][0]["image"] = image
        tell(pod, image, "gateway")
    else:
        validate(manifest)
    seen[kind] = manifest


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"{error}")
