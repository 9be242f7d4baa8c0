//! Terminals.

use belljar_tests::{World, terminal::Terminal};
use serde_json::json;

#[test]
fn a_terminal_resizes_survives_its_client_and_tells_its_exit_code() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let session = sandbox.http().post("/api/v1/pty", &json!({"command": "/bin/bash", "rows": 40, "cols": 100}));
    assert_eq!(session.status, 201, "{session:?}");
    let mut terminal = Terminal::attach(&world, &sandbox, &session.json);
    terminal.write("stty size; echo mark-$((1+1))\n");
    terminal.wait_for("40 100");
    terminal.wait_for("mark-2");
    terminal.resize(120, 50);
    terminal.write("stty size\n");
    terminal.wait_for("50 120");
    drop(terminal);

    let mut again = Terminal::attach(&world, &sandbox, &session.json);
    again.wait_for("mark-2");
    let listed = sandbox.http().get("/api/v1/pty").json;
    assert_eq!(listed["sessions"][0]["is_alive"], true, "{listed}");
    assert!(listed["sessions"][0].get("token").is_none(), "{listed}");
    again.write("exit 5\n");
    assert_eq!(again.wait(), 5);

    let wrong =
        sandbox.http().get(&format!("/api/v1/pty/{}/ws?token=00", session.json["session_id"].as_str().unwrap()));
    assert!([400, 403, 426].contains(&wrong.status), "{wrong:?}");
}
