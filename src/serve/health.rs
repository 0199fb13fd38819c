//! What the probes are told: state to answer, without any I/O.
//!
//! The rules are those of `docs/rules.md`, 4.8, as far as one pod needs them:
//!
//! * Liveness (`/healthz`, `/livez`) never depends on the datastore: a pod that waits for a quorum must not be killed
//!   for it, and neither must one that is migrating or stopping.
//! * Ready (`/readyz`) only while the datastore serves linearizable reads and, unless there is none here, the API server
//!   says of itself that it is ready; not while stopping.

use std::net::SocketAddr;

/// The state of this pod's processes, as the supervisor sees it and publishes it through a `tokio::sync::watch` channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// etcd (or kine) answers linearizable reads.
    pub datastore_ready: bool,
    /// The API server's own `/readyz` answers 200; stays false with `distro: none`.
    pub apiserver_ready: bool,
    /// A stop was asked for: from here on the pod is not ready, and nothing returns from this.
    pub stopping: bool,
    /// Ready although it does not serve: the StatefulSet waits for this pod's readiness, and it for another pod
    /// ([`crate::membership::ready`]).
    pub stands_by: bool,
    /// While it stands by: where clients are served, the front port of a pod whose own API server is ready.
    pub elsewhere: Option<SocketAddr>,
    /// How far the API server, or the wrapped command, is.
    pub startup: Startup,
}

/// How far the API server of this pod is, or the command that is wrapped in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Startup {
    /// Not started since this process began: the startup probe gives it time.
    #[default]
    First,
    /// It ran, and is not started again before the datastore serves, or serves anew: the startup probe has succeeded long
    /// ago, so that liveness is asked for meanwhile.
    Again,
    /// It has been started.
    Started,
}

/// Whether readiness includes an API server in this pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// An API server runs here, and connections go to it once it is ready.
    ApiServer,
    /// The datastore alone (`distro: none`).
    DatastoreOnly,
    /// A wrapped command listens there itself. Until it is started it is answered for.
    Command,
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// A line for people; probes look at the status alone. Carries no secret.
    pub body: &'static str,
}

const fn answer(status: u16, body: &'static str) -> Answer {
    Answer { status, body }
}

impl Health {
    /// Whether probes of the port that a wrapped command is to have must be answered for it: it does not run, and somebody
    /// waits for the answer.
    pub fn answers_for_command(self) -> bool {
        match self.startup {
            Startup::First => self.stands_by,
            Startup::Again => true,
            Startup::Started => false,
        }
    }

    /// Whether a new connection belongs to the API server rather than to our own answers. Not while the datastore is
    /// away: the API server's `/healthz` fails without it, and the kubelet would kill the pod for a lost quorum. Not
    /// while stopping: the API server goes first, and would call itself ready until then.
    pub fn passes_through(self, serves: Serves) -> bool {
        serves == Serves::ApiServer && self.apiserver_ready && self.datastore_ready && !self.stopping
    }

    /// Where a new connection belongs that is for an API server, while this pod stands by for another. Only to one that
    /// says that its own API server is ready: so nothing is ever passed in a circle.
    pub fn passes_elsewhere(self, serves: Serves) -> Option<SocketAddr> {
        let away = self.stands_by && !self.stopping && serves == Serves::ApiServer && !self.passes_through(serves);
        self.elsewhere.filter(|_| away)
    }

    fn readiness(self, serves: Serves) -> Answer {
        if self.stopping {
            answer(503, "stopping\n")
        } else if self.stands_by {
            answer(200, "ok: standing by for another pod\n")
        } else if !self.datastore_ready {
            answer(503, "waiting for the datastore to answer linearizable reads\n")
        } else if serves == Serves::ApiServer && !self.apiserver_ready {
            answer(503, "waiting for the API server to become ready\n")
        } else if serves == Serves::Command {
            answer(503, "waiting for the command to be started\n")
        } else {
            answer(200, "ok\n")
        }
    }
}

/// The answer to `METHOD PATH` (a query string is ignored).
pub fn answer_to(method: &str, path: &str, health: Health, serves: Serves) -> Answer {
    let known = match path.split(['?', '#']).next().unwrap_or("") {
        "/readyz" => health.readiness(serves),
        "/healthz" | "/livez" => answer(200, "ok\n"),
        // Clients that are not probes: 503 makes them try again, where 404 would be taken for an API server's word.
        _ => match serves {
            Serves::ApiServer => answer(503, "the API server cannot take this request now; try again\n"),
            Serves::Command => answer(503, "the command that serves here has not been started; try again\n"),
            Serves::DatastoreOnly => answer(404, "no API server runs here; known paths: /readyz /healthz /livez\n"),
        },
    };
    match method {
        "GET" | "HEAD" => known,
        _ if known.status == 200 => answer(405, "only GET and HEAD\n"),
        _ => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8443);

    fn states() -> impl Iterator<Item = Health> {
        let startups = [Startup::First, Startup::Again, Startup::Started];
        let states = startups.into_iter().flat_map(|startup| (0..16u8).map(move |bits| (bits, startup)));
        states.map(|(bits, startup)| Health {
            datastore_ready: bits & 1 != 0,
            apiserver_ready: bits & 2 != 0,
            stopping: bits & 4 != 0,
            stands_by: bits & 8 != 0,
            elsewhere: Some(PEER),
            startup,
        })
    }

    #[test]
    fn a_command_is_answered_for_while_it_does_not_run_and_is_waited_for() {
        for health in states() {
            let first = health.startup == Startup::First && health.stands_by;
            assert_eq!(health.answers_for_command(), first || health.startup == Startup::Again, "{health:?}");
            // Until it runs nobody is to be sent there, nor to take our word for an API server's.
            let stands_by = health.stands_by && !health.stopping;
            assert_eq!(answer_to("GET", "/readyz", health, Serves::Command).status == 200, stands_by, "{health:?}");
            assert_eq!(answer_to("GET", "/api/v1/nodes", health, Serves::Command).status, 503, "{health:?}");
        }
        assert!(!Health::default().answers_for_command(), "a first start has the startup probe's time");
    }

    #[test]
    fn liveness_depends_on_nothing() {
        for health in states() {
            for serves in [Serves::ApiServer, Serves::DatastoreOnly, Serves::Command] {
                for path in ["/healthz", "/livez", "/livez?verbose"] {
                    assert_eq!(answer_to("GET", path, health, serves).status, 200, "{path} {health:?}");
                }
            }
        }
    }

    #[test]
    fn ready_needs_the_datastore_the_api_server_and_no_stop() {
        for health in states() {
            let stands_by = health.stands_by && !health.stopping;
            let with = stands_by || health.datastore_ready && health.apiserver_ready && !health.stopping;
            let without = stands_by || health.datastore_ready && !health.stopping;
            assert_eq!(answer_to("GET", "/readyz", health, Serves::ApiServer).status == 200, with, "{health:?}");
            assert_eq!(answer_to("GET", "/readyz", health, Serves::DatastoreOnly).status == 200, without, "{health:?}");
        }
    }

    #[test]
    fn connections_pass_through_exactly_while_it_serves() {
        for health in states() {
            assert!(!health.passes_through(Serves::DatastoreOnly));
            let health = Health { stands_by: false, ..health };
            let ready = answer_to("GET", "/readyz", health, Serves::ApiServer).status == 200;
            assert_eq!(health.passes_through(Serves::ApiServer), ready, "{health:?}");
        }
    }

    #[test]
    fn clients_are_led_to_a_pod_that_serves_only_while_this_one_stands_by() {
        for health in states() {
            assert_eq!(health.passes_elsewhere(Serves::DatastoreOnly), None);
            let own = health.passes_through(Serves::ApiServer);
            let led = health.stands_by && !health.stopping && !own;
            assert_eq!(health.passes_elsewhere(Serves::ApiServer), led.then_some(PEER), "{health:?}");
            assert_eq!(Health { elsewhere: None, ..health }.passes_elsewhere(Serves::ApiServer), None);
        }
    }

    #[test]
    fn other_paths_and_methods() {
        let ready = Health { datastore_ready: true, apiserver_ready: true, ..Health::default() };
        assert_eq!(answer_to("GET", "/api/v1/pods", Health::default(), Serves::ApiServer).status, 503);
        assert_eq!(answer_to("GET", "/api/v1/pods", ready, Serves::DatastoreOnly).status, 404);
        assert_eq!(answer_to("POST", "/readyz", ready, Serves::ApiServer).status, 405);
        assert_eq!(answer_to("POST", "/readyz", Health::default(), Serves::ApiServer).status, 503);
        assert_eq!(answer_to("HEAD", "/healthz", ready, Serves::ApiServer).status, 200);
        assert_eq!(answer_to("GET", "", ready, Serves::DatastoreOnly).status, 404);
    }
}
