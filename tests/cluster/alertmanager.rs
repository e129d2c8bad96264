//! Debian's Alertmanager, and a receiver of a person's that it notifies.

use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{World, eventually};

/// Where Prometheus sends its alerts.
pub const ADDRESS: &str = "127.0.0.1:9093";

const RECEIVER: &str = "127.0.0.1:9094";

/// Writes each notification as a line of a file.
const RECEIVE: &str = "
import http.server, json, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with open(sys.argv[2], 'a') as file:
            file.write(json.dumps(body) + '\\n')
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
host, port = sys.argv[1].split(':')
http.server.HTTPServer((host, int(port)), Receiver).serve_forever()
";

/// Debian's has its templates in /usr/share alone, and is not installed: they are laid over it, in a mount namespace of its own.
const WITH_TEMPLATES: &str = "mount -t overlay overlay -o lowerdir=\"$0\":/usr/share /usr/share && exec \"$@\"";

/// Ends, with its receiver and its files, when this is dropped.
pub struct Alertmanager {
    programs: [Child; 2],
    told: PathBuf,
    _files: TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        for program in &mut self.programs {
            program.kill().expect("it is ours");
            program.wait().expect("it is ours");
        }
    }
}

impl Alertmanager {
    pub fn start(world: &World) -> Self {
        let files = tempfile::Builder::new().prefix("patchwarden-alertmanager-").tempdir().unwrap();
        let (configuration, told) = (files.path().join("alertmanager.yaml"), files.path().join("told"));
        let webhook = json!({"url": format!("http://{RECEIVER}/"), "send_resolved": true});
        let text = json!({
            "route": {"receiver": "people", "group_wait": "0s", "group_interval": "1s"},
            "receivers": [{"name": "people", "webhook_configs": [webhook]}],
        });
        std::fs::write(&configuration, text.to_string()).unwrap();
        let receiver = world.inside("python3").args(["-c", RECEIVE, RECEIVER]).arg(&told).spawn().expect("python3");
        let program = std::env::var("PATCHWARDEN_ALERTMANAGER").expect("set by hack/chart");
        let bin = Path::new(&program).parent().expect("a directory");
        let share = bin.join("../share");
        let server = world
            .inside("unshare")
            .args(["--mount", "sh", "-c", WITH_TEMPLATES])
            .arg(share)
            .arg(program)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.path={}", files.path().join("data").display()))
            .args([&format!("--web.listen-address={ADDRESS}"), "--cluster.listen-address=", "--log.level=warn"])
            .spawn()
            .expect("prometheus-alertmanager");
        Self { programs: [receiver, server], told, _files: files }
    }

    /// Waits until somebody was told of this alert that it has begun (`firing`) or is over (`resolved`); what was told of it.
    pub fn has_told(&self, alert: &str, status: &str) -> Value {
        let found = eventually(&format!("somebody is told that {alert} is {status}"), || {
            // The last line may be half written, and none is there at first.
            let text = std::fs::read_to_string(&self.told).ok()?;
            let told = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut alerts = told.flat_map(|told| told["alerts"].as_array().cloned().unwrap_or_default());
            alerts.find(|it| (&it["labels"]["alertname"], &it["status"]) == (&json!(alert), &json!(status)))
        });
        found.unwrap()
    }
}
