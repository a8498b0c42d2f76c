//! A real Envoy, with the listeners that a test names.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{iter, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Socket;
use tempfile::TempDir;

use super::client::Client;
use super::http::{Response, find};
use super::net::{Address, Server};
use super::{PATIENCE, envoy_binary, lock, temp_dir, wait_for, wait_value};

/// Configures an Envoy.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    admin: Address,
    listeners: String,
    stats_config: String,
    /// What the admin interface is restricted to, if it is.
    allowed_paths: String,
    bootstrap: String,
    overload_manager: String,
    clusters: usize,
    flags: Vec<String>,
    hot_restart: Option<HotRestart>,
    /// The fetched one, if no other is given.
    program: Option<PathBuf>,
}

/// What the processes of a hot restart share.
#[derive(Debug)]
enum HotRestart {
    /// The first one chooses the base id, and leaves its shared memory behind.
    First,
    Next {
        base_id: String,
    },
}

/// A running Envoy; killed when it is dropped, with all files that it has left.
#[derive(Debug)]
pub struct Envoy {
    setup: Builder,
    child: Child,
    upstream: Server,
    held: Arc<Held>,
}

/// Connections of the upstream server on which a request waits for its response.
type Held = Mutex<Vec<Socket>>;

// JSON, which is YAML too. Without `stat_prefix`, all listeners would share the gauges of
// `listener.127.0.0.1_0`.
const LISTENER: &str = r#"
  - name: $NAME
    stat_prefix: $NAME
    drain_type: $DRAIN
    address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    listener_filters_timeout: 600s
    listener_filters: [$INSPECTOR]
    filter_chains: [{ filters: [$FILTER] }]"#;

const INSPECTOR: &str = r#"{
  name: envoy.filters.listener.tls_inspector,
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }
}"#;

const HTTP_INSPECTOR: &str = r#"{
  name: envoy.filters.listener.http_inspector,
  typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector }
}"#;

/// By default Envoy waits 5 s and then 1 s more before it closes a connection that it has announced
/// to close, or that has been idle.
const SOON: &str = "drain_timeout: 0.1s, delayed_close_timeout: 0.1s,";

const HTTP: &str = r#"{
  name: envoy.filters.network.http_connection_manager,
  typed_config: {
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
    stat_prefix: $NAME,
    codec_type: AUTO,
    $CLOSING
    common_http_protocol_options: { idle_timeout: $IDLE },
    route_config: { virtual_hosts: [{ name: all, domains: ["*"], routes: [
      { match: { connect_matcher: {} }, route: { cluster: upstream,
        upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }] } },
      { match: { path: /hold }, route: { cluster: upstream, timeout: 0s } },
      { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: served } } }
    ] }] },
    upgrade_configs: [{ upgrade_type: CONNECT }, { upgrade_type: websocket }],
    http_filters: [$CHECKS{
      name: envoy.filters.http.router,
      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
    }]
  }
}"#;

/// Responds to health checks, with 503 once they are failed.
const CHECKS: &str = r#"{
      name: envoy.filters.http.health_check,
      typed_config: {
        "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck,
        pass_through_mode: false,
        headers: [{ name: ":path", string_match: { exact: /healthz } }]
      }
    }, "#;

const TCP: &str = r#"{
  name: envoy.filters.network.tcp_proxy,
  typed_config: {
    "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
    stat_prefix: $NAME,
    cluster: upstream
  }
}"#;

/// How long an idle connection may be idle under pressure.
pub const MIN_IDLE: Duration = Duration::from_millis(200);

// By default Envoy reads the file each second.
const OVERLOAD_MANAGER: &str = r#"
overload_manager:
  refresh_interval: $REFRESH
  resource_monitors:
  - name: envoy.resource_monitors.injected_resource
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig
      filename: $FILE
  actions:
  - name: envoy.overload_actions.reduce_timeouts
    triggers:
    - { name: envoy.resource_monitors.injected_resource, threshold: { value: $PRESSURE } }
    typed_config:
      "@type": type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig
      timer_scale_factors: [$TIMERS]"#;

const SWITCHING_PROTOCOLS: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// The file with the base id that the first process of a hot restart has chosen.
const BASE_ID: &str = "base-id";

const CLUSTER: &str = r#"
  - name: $NAME
    type: STATIC
    load_assignment: { cluster_name: $NAME, endpoints: [{ lb_endpoints: [{ endpoint: { address: $UPSTREAM } }] }] }"#;

const CONFIG: &str = r#"
admin: { address: $ADMIN, $ALLOWED }
stats_config: { $STATS }
$BOOTSTRAP
$OVERLOAD
static_resources:
  clusters: $CLUSTERS
  listeners: [] # replaced when there are any
"#;

impl Builder {
    /// The admin interface on a Unix socket, the default.
    pub fn admin_unix(mut self) -> Self {
        self.admin = Address::Unix(self.dir.path().join("admin.sock"));
        self
    }

    /// The admin interface on a free port of 127.0.0.1.
    pub fn admin_tcp_v4(mut self) -> Self {
        self.admin = Address::loopback();
        self
    }

    /// The admin interface on a free port of `[::1]`.
    pub fn admin_tcp_v6(mut self) -> Self {
        self.admin = Address::Tcp((Ipv6Addr::LOCALHOST, 0).into());
        self
    }

    /// The admin interface at this port of 127.0.0.1.
    pub fn admin_at(mut self, port: u16) -> Self {
        self.admin = Address::port(port);
        self
    }

    /// A listener of HTTP/1.1 and HTTP/2. `/hold` is a request that stays in flight until its
    /// client leaves or [`Envoy::respond`], and is accepted at once where it asks for a WebSocket, which
    /// echoes; any other path is answered at once.
    pub fn http(self, name: &str) -> Self {
        self.listener(name, HTTP, "", "DEFAULT", Duration::from_secs(3600))
    }

    /// The same at this port, and with its address for a name in the stats, as Envoy Gateway has it.
    pub fn http_at(mut self, name: &str, port: u16) -> Self {
        let others = self.listeners.len();
        self = self.http(name);
        let listener = self.listeners.split_off(others);
        self.listeners += &listener
            .replacen(&format!("stat_prefix: {name}"), "stat_prefix: ''", 1)
            .replace("port_value: 0", &format!("port_value: {port}"));
        self
    }

    /// The same; it closes connections that have been idle for this long.
    pub fn http_idle(self, name: &str, idle: Duration) -> Self {
        self.listener(name, HTTP, "", "DEFAULT", idle)
    }

    /// The same with these settings of its HTTP connection manager, each with a comma behind it; none are
    /// Envoy's defaults, also for when a connection closes.
    pub fn http_with(self, name: &str, settings: &str) -> Self {
        let filter = HTTP.replace("$CLOSING", settings);
        self.listener(name, &filter, "", "DEFAULT", Duration::from_secs(3600))
    }

    /// The same; it ignores failed health checks, as Envoy Gateway has it for QUIC.
    pub fn http_modify_only(self, name: &str) -> Self {
        self.listener(name, HTTP, "", "MODIFY_ONLY", Duration::from_secs(3600))
    }

    /// The same behind a TLS inspector: a client that sends nothing stays in `pre_cx`.
    pub fn tls_inspector(self, name: &str) -> Self {
        self.listener(name, HTTP, INSPECTOR, "DEFAULT", Duration::from_secs(3600))
    }

    /// A listener that has HTTP and other bytes on one port: each has a filter chain of its own.
    pub fn http_and_tcp(mut self, name: &str) -> Self {
        let others = self.listeners.len();
        self = self.listener(name, HTTP, HTTP_INSPECTOR, "DEFAULT", Duration::from_secs(3600));
        let listener = self.listeners.split_off(others);
        let matched = "filter_chains: [{ filter_chain_match: { application_protocols: \
                       [http/1.1, h2c] }, filters:";
        let listener = listener.replacen("filter_chains: [{ filters:", matched, 1);
        let chain = format!("}}, {{ filters: [{}] }}]", TCP.replace("$NAME", name));
        let end = listener.strip_suffix("}]").expect("the filter chains are the last");
        self.listeners += end;
        self.listeners += &chain;
        self
    }

    /// The listener added last has so small a send buffer in the kernel that what a client does not
    /// read stays in Envoy's own.
    pub fn small_send_buffer(mut self) -> Self {
        self.listeners += "\n    socket_options: [{ description: SO_SNDBUF, level: 1, name: 7, \
                           int_value: 8192, state: STATE_PREBIND }]";
        self
    }

    /// The listener to scrape, whose HTTP connections must not count.
    pub fn stats_listener(self) -> Self {
        self.http("stats")
    }

    /// The listener for a balancer's health checks, at `/healthz`, whose connections must not count.
    pub fn health_listener(self) -> Self {
        let filter = HTTP.replace("$CHECKS", CHECKS);
        self.listener("health", &filter, "", "DEFAULT", Duration::from_secs(3600))
    }

    /// A TCP proxy before a server that echoes.
    pub fn tcp(self, name: &str) -> Self {
        self.listener(name, TCP, "", "DEFAULT", Duration::ZERO)
    }

    /// What goes into `stats_config`, such as `stats_matcher: { inclusion_list: … }`.
    pub fn stats_config(mut self, yaml: &str) -> Self {
        self.stats_config = yaml.to_owned();
        self
    }

    /// The admin interface serves its pages, and nothing that changes Envoy.
    pub fn read_only_admin(mut self) -> Self {
        self.allowed_paths =
            "allow_paths: [{ exact: /ready }, { exact: /listeners }, { prefix: /stats }]"
                .to_owned();
        self
    }

    /// A field of the bootstrap, such as `stats_flush_interval: 1s`.
    pub fn bootstrap(mut self, yaml: &str) -> Self {
        self.bootstrap = yaml.to_owned();
        self
    }

    /// While the pressure in this file is at least 0.01, idle HTTP connections may be idle for
    /// [`MIN_IDLE`] and no longer. The file's directory must be there.
    pub fn injected_resource(self, file: &Path) -> Self {
        let idle = ("HTTP_DOWNSTREAM_CONNECTION_IDLE", MIN_IDLE);
        self.reduced_timeouts(file, 0.01, Duration::from_millis(100), &[idle])
    }

    /// The same from this pressure on, which is read at this interval, and of these timers.
    pub fn reduced_timeouts(
        mut self,
        file: &Path,
        pressure: f64,
        refresh: Duration,
        timers: &[(&str, Duration)],
    ) -> Self {
        let timers = timers.iter().map(|(timer, min)| {
            format!("{{ timer: {timer}, min_timeout: {}s }}", min.as_secs_f64())
        });
        self.overload_manager = OVERLOAD_MANAGER
            .replace("$REFRESH", &format!("{}s", refresh.as_secs_f64()))
            .replace("$FILE", &format!("{file:?}"))
            .replace("$PRESSURE", &pressure.to_string())
            .replace("$TIMERS", &timers.collect::<Vec<_>>().join(", "));
        self
    }

    /// So far every HTTP listener has a longest duration of its connections, whose timer the overload
    /// manager can reduce; without one there is no such timer.
    pub fn max_connection_duration(mut self, max: Duration) -> Self {
        let option = format!("max_connection_duration: {}s, idle_timeout:", max.as_secs_f64());
        self.listeners = self.listeners.replace("idle_timeout:", &option);
        self
    }

    /// The listener added last has no gauges in the stats (`stats_matcher`, from Envoy 1.40 on).
    pub fn hidden(mut self) -> Self {
        self.listeners += "\n    stats_matcher: { reject_all: true }";
        self
    }

    /// So many clusters more, each of which has more than a hundred stats.
    pub fn clusters(mut self, clusters: usize) -> Self {
        self.clusters = clusters;
        self
    }

    /// One more flag of Envoy's command line.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// It can be restarted by [`Envoy::hot_restart`].
    pub fn hot_restartable(mut self) -> Self {
        self.hot_restart = Some(HotRestart::First);
        self
    }

    /// The program of another version.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    fn listener(
        mut self,
        name: &str,
        filter: &str,
        inspector: &str,
        drain: &str,
        idle: Duration,
    ) -> Self {
        self.listeners += &LISTENER
            .replace("$FILTER", filter)
            .replace("$CHECKS", "")
            .replace("$CLOSING", SOON)
            .replace("$INSPECTOR", inspector)
            .replace("$NAME", name)
            .replace("$DRAIN", drain)
            .replace("$IDLE", &format!("{}s", idle.as_secs_f64()));
        self
    }

    /// Starts it and waits until it is live.
    pub fn start(self) -> Envoy {
        // Holds what it takes for an HTTP request, accepts a WebSocket and echoes everything else.
        let held = Arc::<Held>::default();
        let waiting = Arc::clone(&held);
        let upstream = Server::start(&Address::loopback(), move |mut socket| {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = socket.read(&mut buffer) {
                let received = &buffer[..n];
                let sent = if !received.starts_with(b"GET ") {
                    socket.write_all(received)
                } else if find(received, b"upgrade: websocket").is_some() {
                    socket.write_all(SWITCHING_PROTOCOLS.as_bytes())
                } else {
                    socket.try_clone().map(|socket| lock(&waiting).push(socket))
                };
                if sent.is_err() {
                    break;
                }
            }
        });
        let upstream = upstream.expect("a port for the upstream server");
        let child = self.spawn(upstream.address());
        let mut envoy = Envoy { setup: self, child, upstream, held };
        envoy.wait_until_live();
        envoy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base_id(&self) -> Option<String> {
        matches!(self.hot_restart, Some(HotRestart::First))
            .then(|| fs::read_to_string(self.path(BASE_ID)).ok())?
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn spawn(&self, upstream: &Address) -> Child {
        let more = (0..self.clusters).map(|number| format!("cluster_{number}"));
        let names = iter::once("upstream".to_owned()).chain(more);
        let clusters = names.map(|name| CLUSTER.replace("$NAME", &name));
        let mut config = CONFIG
            .replace("$ADMIN", &yaml(&self.admin))
            .replace("$ALLOWED", &self.allowed_paths)
            .replace("$STATS", &self.stats_config)
            .replace("$BOOTSTRAP", &self.bootstrap)
            .replace("$OVERLOAD", &self.overload_manager)
            .replace("$CLUSTERS", &clusters.collect::<String>())
            .replace("$UPSTREAM", &yaml(upstream));
        if !self.listeners.is_empty() {
            config = config.replace("[] # replaced when there are any", &self.listeners);
        }
        fs::write(self.path("envoy.yaml"), config).expect("write the configuration");
        let log = File::options().create(true).append(true).open(self.path("log"));
        let log = log.expect("open the log");
        let mut command = Command::new(self.program.clone().unwrap_or_else(envoy_binary::envoy));
        match &self.hot_restart {
            // It would leave shared memory behind for each Envoy.
            None => command.arg("--disable-hot-restart"),
            Some(HotRestart::First) => {
                command.args(["--use-dynamic-base-id", "--base-id-path", BASE_ID])
            }
            Some(HotRestart::Next { base_id }) => command
                .args(["--base-id", base_id, "--restart-epoch", "1"])
                .args(["--parent-shutdown-time-s", "600"]),
        };
        command
            .args(["-l", "error", "--concurrency", "1", "--drain-time-s", "600"])
            .args(["-c", "envoy.yaml"])
            .args(["--admin-address-path", "admin-address"])
            .args(&self.flags)
            .current_dir(&self.dir)
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start Envoy")
    }
}

fn yaml(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("{{ pipe: {{ path: {path:?} }} }}"),
        Address::Tcp(tcp) => format!(
            "{{ socket_address: {{ address: \"{}\", port_value: {} }} }}",
            tcp.ip(),
            tcp.port()
        ),
    }
}

impl AsRef<Address> for Envoy {
    fn as_ref(&self) -> &Address {
        self.admin()
    }
}

impl Envoy {
    /// An Envoy without listeners so far.
    pub fn builder() -> Builder {
        Builder {
            dir: temp_dir("envoy"),
            admin: Address::loopback(),
            listeners: String::new(),
            stats_config: String::new(),
            allowed_paths: String::new(),
            bootstrap: String::new(),
            overload_manager: String::new(),
            clusters: 0,
            flags: Vec::new(),
            hot_restart: None,
            program: None,
        }
        .admin_unix()
    }

    fn wait_until_live(&mut self) {
        wait_for("Envoy to be live", || {
            if let Some(status) = self.try_wait() {
                panic!("Envoy ended with {status}");
            }
            if let Address::Tcp(address) = &mut self.setup.admin
                && address.port() == 0
            {
                // Kept, so that it comes back here after a restart.
                *address = fs::read_to_string(self.setup.dir.path().join("admin-address"))
                    .ok()?
                    .parse()
                    .ok()?;
            }
            let response = self.request("GET", "/ready").ok()?;
            (response.body == "LIVE\n").then_some(())
        });
    }

    /// The admin interface's address, as `--admin-address` takes it.
    pub fn admin_address(&self) -> String {
        self.setup.admin.to_string()
    }

    /// The admin interface's address.
    pub fn admin(&self) -> &Address {
        &self.setup.admin
    }

    /// One request to the admin interface.
    pub fn request(&self, method: &str, path: &str) -> io::Result<Response> {
        Client::from(self.setup.admin.clone()).try_request(method, path, PATIENCE)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path).expect(path)
    }

    #[track_caller]
    pub fn post(&self, path: &str) -> Response {
        self.request("POST", path).expect(path)
    }

    /// `LIVE`, `DRAINING`, …
    #[track_caller]
    pub fn ready(&self) -> String {
        self.get("/ready").body.trim_end().to_owned()
    }

    /// A counter or gauge; `None` if it has none of that name.
    #[track_caller]
    pub fn stat(&self, name: &str) -> Option<u64> {
        let body = self.get(&format!("/stats?filter={name}")).body;
        let mut lines = body.lines().filter_map(|line| line.split_once(": "));
        let (_, value) = lines.find(|(key, _)| *key == name)?;
        Some(value.parse().expect("a number"))
    }

    /// Waits until a gauge has this value.
    #[track_caller]
    pub fn wait_stat(&self, name: &str, value: u64) {
        wait_value(name, || self.stat(name), |now| *now == Some(value));
    }

    /// Waits until so many requests to `/hold` are there, whose clients send the response themselves, as
    /// their body: it comes back.
    #[track_caller]
    pub fn wait_held(&self, requests: usize) {
        drop(self.take_held(requests));
    }

    #[track_caller]
    fn take_held(&self, requests: usize) -> Vec<Socket> {
        wait_for("requests to be held", || {
            let mut held = lock(&self.held);
            let first = held.len().checked_sub(requests)?;
            Some(held.split_off(first))
        })
    }

    /// Responds to so many requests to `/hold`, once they are there, with this body.
    #[track_caller]
    pub fn respond(&self, requests: usize, body: &str) {
        let held = self.take_held(requests);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        for mut socket in held {
            socket.write_all(format!("{head}{body}").as_bytes()).expect("respond");
        }
    }

    /// The port of a listener.
    #[track_caller]
    pub fn port(&self, name: &str) -> u16 {
        let listeners = self.get("/listeners").body;
        let start = format!("{name}::{}:", Ipv4Addr::LOCALHOST);
        let port = listeners.lines().find_map(|line| line.strip_prefix(&start));
        port.and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("no listener {name} in {listeners:?}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, signal).expect("signal Envoy");
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for Envoy")
    }

    /// Ends it as the kubelet does: clients that are connected are cut.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("wait for Envoy");
    }

    /// Freezes it.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Thaws it.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Ends it at once. A Unix socket's file stays behind.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill Envoy");
        self.child.wait().expect("wait for Envoy");
    }

    /// Kills it and starts it again: the same admin address, new ports for the listeners.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
        self.wait_until_live();
    }

    /// The same with another program, or the fetched one.
    pub fn restart_as(&mut self, program: Option<&Path>) {
        self.setup.program = program.map(Path::to_owned);
        self.restart();
    }

    /// Starts another Envoy, which takes over from this one: the same listeners at new ports, another
    /// admin address, and this one's ends. It must be dropped first.
    pub fn hot_restart(&self, listeners: Builder) -> Self {
        let base_id = self.setup.base_id().expect("a base id");
        let hot_restart = Some(HotRestart::Next { base_id });
        Builder { hot_restart, ..listeners }.start()
    }

    /// Starts it again after a kill, and does not wait until it is live.
    pub fn start_again(&mut self) {
        self.child = self.setup.spawn(self.upstream.address());
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // First, since the upstream server's connections are Envoy's.
        let _killed_before = self.child.kill();
        let _ = self.child.wait();
        if let Some(base_id) = self.setup.base_id() {
            let memory = format!("/dev/shm/envoy_shared_memory_{}0", base_id.trim());
            let _none_made = fs::remove_file(memory);
        }
        if thread::panicking() {
            eprintln!("Envoy's log:\n{}", self.setup.log());
        }
    }
}
