"""Reads the manifests in the manual and the README, and validates each against Kubernetes' schemas: whole
ones as they are, patches applied to what they patch. Prints for every pod with a sidecar how that is
started, and what hooks and probes request from it:

    read.py VERSION FOLDER PAGE...

Each fact is a line of words separated by tabs; a pod begins with the line `pod`. The `envoy.yaml` of the
ConfigMap is written into FOLDER. Exits with 1 and a sentence when a manifest is wrong.
"""

import copy
import pathlib
import re
import sys

import kubernetes_validate
import yaml

KUBERNETES = ["1.34", "1.37"]
GATEWAY = "gateway.envoyproxy.io/v1alpha1"
MONITORING = "monitoring.coreos.com/v1"
# The sidecar's default --admin-address.
ADMIN_SOCKET = "/admin/admin.sock"


class Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"duplicate keys: {keys}"
        return super().construct_mapping(node, deep)


def load(text):
    return [manifest for manifest in yaml.load_all(text, Loader) if manifest]


def patched(base, patch):
    """A strategic merge: items of a list that have the same name are merged."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: patched(base.get(key), patch[key]) if key in patch else base[key] for key in base | patch}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in base + patch):
        merged = {item["name"]: item for item in base}
        for item in patch:
            assert item["name"] in merged, f"nothing to patch has the name {item['name']}"
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


def only(items, condition):
    (item,) = [item for item in items if condition(item)]
    return item


def named(items, name):
    return only(items, lambda item: item["name"] == name)


def describe(manifest, image, *source):
    """Prints what the Rust test checks: command lines, hooks, probes and times."""
    validate(manifest)
    pod = manifest["spec"].get("template", manifest)["spec"]
    containers = pod.get("initContainers", []) + pod["containers"]
    manager, envoy = named(containers, "shutdown-manager"), named(containers, "envoy")
    assert [container["name"] for container in containers if container["image"] == image] == ["shutdown-manager"]
    of_pod = pod.get("securityContext", {}).get("runAsUser")
    users = [container.get("securityContext", {}).get("runAsUser", of_pod) for container in (manager, envoy)]
    assert users[0] == users[1] is not None, f"they run as {users}: the sidecar cannot reach Envoy"
    print("pod", *source, manifest["metadata"]["name"], sep="\t")
    print("grace", pod["terminationGracePeriodSeconds"], sep="\t")
    print("network", "host" if pod.get("hostNetwork") else "own", sep="\t")
    print("sidecar", *manager["command"], *manager["args"], sep="\t")
    print("exec_hook", *manager["lifecycle"]["preStop"]["exec"]["command"], sep="\t")
    requests = [("envoy_hook", envoy["lifecycle"]["preStop"]), ("probe", manager.get("livenessProbe"))]
    for kind, request in requests:
        if request:
            get = request["httpGet"]
            print(kind, get.get("host", ""), get["path"], get["port"], sep="\t")


def hardened(pod):
    """Checks what the Pod Security level `restricted` requires, and for a read-only root."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["initContainers"] + spec["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]


def ordinary(pod):
    """Returns the pod with its native sidecar as an ordinary container."""
    pod = copy.deepcopy(pod)
    (sidecar,) = pod["spec"].pop("initContainers")
    assert sidecar.pop("restartPolicy") == "Always"
    pod["spec"]["containers"].insert(0, sidecar)
    return pod


def with_config(pod, config):
    """Checks that the pod's Envoy starts with this ConfigMap, and returns the `envoy.yaml` in it."""
    spec = pod["spec"]
    volume = only(spec["volumes"], lambda volume: volume.get("configMap") == {"name": config["metadata"]["name"]})
    envoy, manager = named(spec["containers"], "envoy"), named(spec["initContainers"], "shutdown-manager")
    folder = named(envoy["volumeMounts"], volume["name"])["mountPath"]
    assert config["data"].keys() == {"envoy.yaml"} and envoy["args"] == ["-c", f"{folder}/envoy.yaml"], "the path"
    text = config["data"]["envoy.yaml"]
    (bootstrap,) = load(text)
    assert bootstrap["admin"]["address"] == {"pipe": {"path": ADMIN_SOCKET}}, "another admin address"
    shared = [mount for mount in envoy["volumeMounts"] if mount in manager["volumeMounts"]]
    assert [mount["mountPath"] for mount in shared] == [str(pathlib.PurePath(ADMIN_SOCKET).parent)]
    (monitor,) = bootstrap["overload_manager"]["resource_monitors"]
    injected = f"--injected-resource={monitor['typed_config']['filename']}"
    assert injected in manager["args"], "the sidecar writes another file"
    assert injected.startswith(f"--injected-resource={shared[0]['mountPath']}/"), "in another volume"
    ready = envoy["readinessProbe"]["httpGet"]
    listeners = bootstrap["static_resources"]["listeners"]
    port = lambda listener: listener["address"]["socket_address"]["port_value"]
    listener = str(only(listeners, lambda listener: port(listener) == ready["port"]))
    assert repr({"match": {"path": ready["path"]}, "route": {"cluster": "admin"}}) in listener, "readiness"
    return text


def seconds(duration):
    assert re.fullmatch(r"\d{1,5}s", duration), f"{duration} is not a number of seconds"
    return int(duration[:-1])


def gateway_pod(base, shutdown):
    """Returns the pod that Envoy Gateway makes of an EnvoyProxy's `shutdown`."""
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


class Pages:
    """The manifests that were read so far, and the originals that patches apply to."""

    def __init__(self, image):
        self.image = image
        self.contour, self.chart, self.gateway = load(pathlib.Path(__file__).with_name("theirs.yaml").read_text())
        self.seen = {}
        self.ports = []

    def read(self, manifest):
        kind = manifest["kind"]
        same = lambda base: [base["metadata"].get(key) == manifest["metadata"].get(key) for key in ("name", "namespace")]
        if kind == "Pod" and kind in self.seen:
            assert all(same(self.seen[kind])), "it patches another pod"
            describe(patched(self.seen[kind], manifest), self.image, "patched")
            kind = "patch of Pod"
        elif kind == "Pod":
            hardened(manifest)
            describe(manifest, self.image)
            describe(ordinary(manifest), self.image, "ordinary")
        elif kind == "DaemonSet":
            assert all(same(self.contour)), "it patches another DaemonSet"
            pod = patched(self.contour, manifest)
            describe(pod, self.image, "contour")
            envoy = named(pod["spec"]["template"]["spec"]["containers"], "envoy")
            if "args" in envoy:
                assert envoy["args"][-2] == "--config-yaml", "Envoy's arguments"
                self.overload(envoy["args"][-1], pod)
        elif kind == "Kustomization":
            assert manifest["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
            (entry,) = manifest["patches"]
            assert entry.keys() == {"target", "patch"}, "fields"
            assert manifest.keys() == {"apiVersion", "kind", "resources", "patches"}, "fields"
            label, value = entry["target"].pop("labelSelector").split("=")
            assert entry["target"] == {"kind": self.chart["kind"]} and self.chart["metadata"]["labels"][label] == value
            (patch,) = load(entry["patch"])
            # Kustomize selects by the target, and ignores the name.
            describe(patched(self.chart, {"spec": patch["spec"]}), self.image, "chart")
        elif kind == "EnvoyGateway":
            assert manifest == {
                "apiVersion": GATEWAY,
                "kind": kind,
                "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
                "provider": {"type": "Kubernetes", "kubernetes": {"shutdownManager": {"image": self.image}}},
            }, "it is not Envoy Gateway's"
        elif kind == "EnvoyProxy":
            spec = manifest["spec"]
            assert manifest["apiVersion"] == GATEWAY and spec.keys() <= {"shutdown", "bootstrap", "provider"}, "fields"
            pod = gateway_pod(copy.deepcopy(self.gateway), spec["shutdown"])
            pod["spec"]["template"]["spec"]["containers"][0]["image"] = self.image
            if "bootstrap" in spec:
                assert spec["bootstrap"]["type"] == "Merge", "the default is Replace"
                patch = spec["provider"]["kubernetes"]["envoyDeployment"]["patch"]
                pod = patched(pod, patch["value"])
                self.overload(spec["bootstrap"]["value"], pod)
            describe(pod, self.image, "gateway")
        elif kind == "PodMonitor":
            self.monitor(manifest)
        elif kind == "PrometheusRule":
            # promtool checks the rules themselves: see alerts.py.
            assert manifest["apiVersion"] == MONITORING and manifest["spec"].keys() == {"groups"}, "fields"
        else:
            validate(manifest)
        self.seen[kind] = manifest

    def overload(self, text, pod):
        """Checks that an overload manager is that of the whole pod's Envoy, and reads what the pod's sidecar writes."""
        (fragment,) = load(text)
        assert fragment.keys() == {"overload_manager"}, "fields"
        (bootstrap,) = load(self.seen["ConfigMap"]["data"]["envoy.yaml"])
        # That one is validated by a real Envoy.
        expected, found = copy.deepcopy(bootstrap["overload_manager"]), fragment["overload_manager"]
        paths = [overload["resource_monitors"][0]["typed_config"].pop("filename") for overload in (expected, found)]
        for overload in (expected, found):
            assert overload.pop("refresh_interval", "0.25s") == "0.25s", "refresh_interval"
        assert expected == found, f"it is not {expected}"
        manager = named(pod["spec"]["template"]["spec"]["containers"], "shutdown-manager")
        assert f"--injected-resource={paths[1]}" in manager["args"], "the sidecar writes another file"

    def monitor(self, manifest):
        """Checks that a PodMonitor finds the sidecar of Contour's pods, with the ports that were declared before it."""
        assert manifest["apiVersion"] == MONITORING, "another version"
        assert manifest["metadata"]["namespace"] == self.contour["metadata"]["namespace"], "another namespace"
        spec = manifest["spec"]
        assert spec.keys() == {"selector", "podMetricsEndpoints"} and spec["selector"].keys() == {"matchLabels"}, "fields"
        pod = {"spec": {"containers": [{"name": "shutdown-manager", "ports": self.ports}]}}
        monitored = patched(self.contour, {"spec": {"template": pod}})
        validate(monitored)
        labels = monitored["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items(), "it selects other pods"
        (endpoint,) = spec["podMetricsEndpoints"]
        assert endpoint.keys() == {"port", "interval"} and re.fullmatch(r"\d+s", endpoint["interval"]), "fields"
        envoys_hook = named(monitored["spec"]["template"]["spec"]["containers"], "envoy")["lifecycle"]["preStop"]
        port = named(self.ports, endpoint["port"])["containerPort"]
        assert port == envoys_hook["httpGet"]["port"], f"{port} is not the public port"


def blocks(page):
    """Returns the language and text of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M)


def main(version, folder, *paths):
    image = f"registry.example/envoy-shutdown-manager:{version}"
    pages = Pages(image)
    swaps = set()
    for path in paths:
        text = pathlib.Path(path).read_text()
        images = set(re.findall(r"[\w./-]*/envoy-shutdown-manager:[\w.-]+", text))
        assert images <= {image}, f"{path}: images: {images}"
        swaps |= set(re.findall(r"^ *kubectl (.*) set image (.*)$", text, re.M))
        for number, (language, block) in enumerate(blocks(text), 1):
            where = f"{path}: code block {number}"
            assert not re.search(r"check-delay[ =]0", block), f"{where}: it loses requests"
            for manifest in load(block) if language == "yaml" else []:
                # Fragments have no kind: of Envoy's configuration, of a container, or rules.
                if isinstance(manifest, dict) and manifest.keys() == {"ports"}:
                    pages.ports = manifest["ports"]
                if isinstance(manifest, dict) and manifest.keys() == {"overload_manager"}:
                    (bootstrap,) = load(pages.seen["ConfigMap"]["data"]["envoy.yaml"])
                    assert bootstrap["overload_manager"] == manifest["overload_manager"], f"{where}: not the pod's"
                if isinstance(manifest, dict) and "kind" in manifest:
                    try:
                        pages.read(manifest)
                    except (AssertionError, LookupError, TypeError, ValueError) as error:
                        raise AssertionError(f"{where}, {manifest['kind']}: {error!r}") from error
    assert swaps == {("-n projectcontour", f"daemonset/envoy shutdown-manager={image}")}, f"set image: {swaps}"
    kinds = {"ConfigMap", "Pod", "patch of Pod", "DaemonSet", "Kustomization", "EnvoyGateway", "EnvoyProxy"}
    missing = (kinds | {"NetworkPolicy", "PodMonitor", "PrometheusRule"}) - pages.seen.keys()
    assert not missing, f"the pages have no {missing}"
    bootstrap = with_config(pages.seen["Pod"], pages.seen["ConfigMap"])
    pathlib.Path(folder, "envoy.yaml").write_text(bootstrap)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"{error}")
