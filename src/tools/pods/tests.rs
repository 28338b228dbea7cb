use serde_json::json;

use super::*;

fn pod(metadata: Value) -> Pod {
    serde_json::from_value(json!({"metadata": metadata})).expect("a Pod")
}

#[test]
fn only_a_pod_that_a_controller_owns_is_restarted() {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "1", "controller": true}]);
    let owned = pod(json!({"name": "web", "ownerReferences": owner}));
    assert_eq!(replacing_owner(&owned).expect("an owner").name, "web-1");
    let weak = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "1"}]);
    for (metadata, why) in [
        (json!({"name": "web"}), "no controller owns it"),
        (json!({"name": "web", "ownerReferences": weak}), "no controller owns it"),
        (
            json!({"name": "web", "ownerReferences": owner, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            "it is already being deleted",
        ),
        (
            json!({"name": "web", "ownerReferences": owner, "annotations": {"kubernetes.io/config.mirror": "x"}}),
            "it is run by its node",
        ),
    ] {
        let error = replacing_owner(&pod(metadata)).expect_err("refused");
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn a_log_is_asked_for_with_its_last_hundred_lines() {
    let given = json!({"namespace": "shop", "name": "web"});
    let (pod, mut arguments) = PodName::take(given.as_object().unwrap(), &LOG_ARGUMENTS).expect("valid");
    assert_eq!(arguments.integer("tailLines"), Some(100));
    assert_eq!((pod.target(), pod.resource()), (Target::Namespace("shop"), "pods/web".into()));
    for bad in [json!({"tailLines": 0}), json!({"tailLines": 10_001}), json!({"sinceSeconds": 0})] {
        let mut given = given.clone();
        given.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        assert!(parse_log(given.as_object().unwrap()).is_err(), "{bad}");
    }
}

#[test]
fn a_log_that_fits_is_whole() {
    assert_eq!(log_text(b"one\r\ntwo\n", 9), ("one\ntwo\n".into(), false));
    assert_eq!(log_text(b"", 0), (String::new(), false));
}

#[test]
fn a_log_that_does_not_fit_begins_with_a_whole_line_and_says_so() {
    assert_eq!(log_text(b"ne\ntwo\nthree", 13), ("two\nthree".into(), true));
    assert_eq!(log_text(b"of one line", 99), ("of one line".into(), true));
    let (text, truncated) = log_text(&[0xff; MAX_LOG], MAX_LOG as u64);
    assert!(truncated && text.len() <= MAX_LOG);
}

#[test]
fn a_log_cannot_drive_a_terminal() {
    assert_eq!(log_text(b"\x1b[2Jhello\x07\tworld\n", 20).0, " [2Jhello \tworld\n");
}

#[test]
fn columns_made_here_show_readiness_status_and_restarts() {
    let cells = |object: Value| PODS.columns[..3].iter().map(|c| (c.value)(&object)).collect::<Vec<_>>();
    let containers = json!([{"name": "a"}, {"name": "b"}]);
    assert_eq!(
        cells(
            json!({"spec": {"containers": containers}, "status": {"phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 2, "state": {"running": {}}},
                {"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ]}})
        ),
        ["1/2", "CrashLoopBackOff", "5"]
    );
    assert_eq!(
        cells(json!({"spec": {"containers": containers}, "status": {"phase": "Pending"}})),
        ["0/2", "Pending", "0"]
    );
    assert_eq!(
        cells(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}})
        )[1],
        "Terminating"
    );
}
