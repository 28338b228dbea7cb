use serde_json::json;

use super::*;

fn pods() -> &'static Object {
    Object::find("pods").expect("it is there")
}

fn secrets() -> Object {
    Object { name: SECRETS, qualified: SECRETS, plural: SECRETS, kind: "Secret", ..pods().clone() }
}

fn shown_as(object: &Object, found: Value) -> Result<Value, String> {
    let Value::Object(found) = found else { panic!("an object") };
    shown(object, found).map(Value::Object).map_err(|error| error.to_string())
}

#[test]
fn an_object_is_shown_without_annotations_and_what_its_programs_are_started_with() {
    let container = json!({"name": "web", "image": "web:1", "command": ["run"], "args": ["--password=x"],
        "env": [{"name": "A", "value": "secret"}, {"name": "B", "valueFrom": {"fieldRef": {}}}]});
    let found = json!({
        "kind": "Rollout",
        "metadata": {"name": "web", "labels": {"app": "web"}, "managedFields": [{}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "secret"}},
        "spec": {"template": {"spec": {"containers": [container.clone()], "initContainers": [container]}}},
    });
    let shown = shown_as(pods(), found).expect("shown");
    let container = json!({"name": "web", "image": "web:1",
        "env": [{"name": "A", "value": LEFT_OUT}, {"name": "B", "valueFrom": {"fieldRef": {}}}]});
    let expected = json!({
        "kind": "Rollout",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"template": {"spec": {"containers": [container.clone()], "initContainers": [container]}}},
    });
    assert_eq!(shown, expected);
}

#[test]
fn values_of_a_secret_are_shown_as_text_so_that_keys_in_them_are_masked_later() {
    let found = json!({"type": "Opaque", "metadata": {"name": "db"}, "data": {"password": "aHVudGVyMg==", "key": "/w=="}});
    let shown = shown_as(&secrets(), found).expect("shown");
    assert_eq!(shown["data"], json!({"password": "hunter2", "key": "<1 bytes, not text>"}));
}

#[test]
fn secrets_of_portcullis_itself_are_not_shown_to_anybody() {
    let owner = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "ops"});
    for found in [
        json!({"type": "portcullis.dev/api-key", "metadata": {}, "data": {"api-key": "eA=="}}),
        json!({"type": "kubernetes.io/tls", "metadata": {"ownerReferences": [owner]}, "data": {}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "portcullis"}}, "data": {}}),
    ] {
        let error = shown_as(&secrets(), found.clone()).expect_err("refused");
        assert!(error.contains("no tool shows it"), "{found}: {error}");
    }
}

#[test]
fn a_resource_is_found_with_and_without_its_group_and_chooses_the_permission() {
    let call = |resource: &str| {
        let given = json!({"resource": resource, "namespace": "shop", "name": "web"});
        (GET.parse)(given.as_object().expect("an object").clone()).expect("valid")
    };
    for resource in ["deployments", "deployments.apps"] {
        let call = call(resource);
        assert_eq!(call.permission(), Some(Permission::of("deployments", "get")), "{resource}");
        assert_eq!(
            (call.target(), call.resource()),
            (Target::Namespace("shop"), "deployments/web".to_owned())
        );
    }
    for resource in ["deployments.core", "secrets", "namespaces", "tools", "widgets.example.com"] {
        assert_eq!(call(resource).permission(), None, "{resource}");
    }
}

/// What no object may show, whatever the kind: every text in the objects below that begins so.
const HIDDEN: &str = "hunter2";

fn probe() -> Value {
    json!({"exec": {"command": ["check", "--password=hunter2-probe"]}, "periodSeconds": 10})
}

fn web() -> Value {
    json!({
        "httpGet": {"path": "/healthz", "port": 8080,
            "httpHeaders": [{"name": "Authorization", "value": "hunter2-header"}]},
        "failureThreshold": 3,
    })
}

fn pod_spec() -> Value {
    let container = json!({
        "name": "web", "image": "web:1", "command": ["run", "hunter2-command"], "args": ["hunter2-args"],
        "env": [{"name": "A", "value": "hunter2-env"}, {"name": "B", "valueFrom": {"fieldRef": {}}}],
        "livenessProbe": probe(), "readinessProbe": web(), "startupProbe": probe(),
        "lifecycle": {"postStart": web(), "preStop": probe()},
        "terminationMessagePath": "/dev/termination-log",
    });
    json!({
        "containers": [container.clone()], "initContainers": [container.clone()],
        "ephemeralContainers": [container], "nodeSelector": {"command": "kept", "env": "kept"},
    })
}

fn status_of(name: &str) -> Value {
    let ended = json!({"exitCode": 1, "reason": "Error", "message": "hunter2-log"});
    json!([{
        "name": name, "restartCount": 4, "state": {"terminated": ended.clone()},
        "lastState": {"terminated": ended},
    }, {
        "name": "waits", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
    }])
}

#[test]
fn a_pod_is_shown_without_its_log_its_annotations_and_what_its_probes_run_and_send() {
    let found = json!({
        "kind": "Pod",
        "metadata": {"name": "web-1", "labels": {"args": "kept"}, "annotations": {"note": "hunter2-note"},
            "managedFields": [{"manager": "hunter2-manager"}]},
        "spec": pod_spec(),
        "status": {
            "phase": "Running", "message": "kept", "containerStatuses": status_of("web"),
            "initContainerStatuses": status_of("init"), "ephemeralContainerStatuses": status_of("debug"),
            "conditions": [{"type": "Ready", "status": "False", "message": "kept"}],
        },
    });
    let shown = shown_as(pods(), found).expect("shown");
    assert!(!shown.to_string().contains(HIDDEN), "{shown:#}");
    let web = json!({"httpGet": {"path": "/healthz", "port": 8080}, "failureThreshold": 3});
    let probe = json!({"periodSeconds": 10});
    let container = json!({
        "name": "web", "image": "web:1",
        "env": [{"name": "A", "value": LEFT_OUT}, {"name": "B", "valueFrom": {"fieldRef": {}}}],
        "livenessProbe": probe, "readinessProbe": web, "startupProbe": probe,
        "lifecycle": {"postStart": web, "preStop": probe}, "terminationMessagePath": "/dev/termination-log",
    });
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        assert_eq!(shown["spec"][containers], json!([container]), "{containers}");
    }
    assert_eq!(shown["spec"]["nodeSelector"], json!({"command": "kept", "env": "kept"}));
    assert_eq!(shown["metadata"], json!({"name": "web-1", "labels": {"args": "kept"}}));
    let status = &shown["status"];
    let ended = json!({"exitCode": 1, "reason": "Error"});
    for statuses in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        assert_eq!(status[statuses][0]["state"]["terminated"], ended, "{statuses}");
        assert_eq!(status[statuses][0]["lastState"]["terminated"], ended, "{statuses}");
        // Why a container waits is in the words of the cluster, and pods_get shows it too.
        assert_eq!(status[statuses][1]["state"]["waiting"]["message"], "back-off 40s", "{statuses}");
    }
    assert_eq!((&status["message"], &status["conditions"][0]["message"]), (&json!("kept"), &json!("kept")));
}

#[test]
fn a_deployment_is_shown_without_the_annotations_and_the_programs_of_its_template() {
    let metadata = json!({"labels": {"app": "web"}, "annotations": {"note": "hunter2-template"}});
    let found = json!({
        "kind": "Deployment",
        "metadata": {"name": "web", "annotations": {"note": "hunter2-note"}, "labels": {"app": "web"}},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": metadata, "spec": pod_spec()}},
        "status": {"replicas": 2, "conditions": [{"type": "Available", "message": "kept"}]},
    });
    let shown = shown_as(Object::of("deployments"), found).expect("shown");
    assert!(!shown.to_string().contains(HIDDEN), "{shown:#}");
    assert_eq!(shown["spec"]["template"]["metadata"], json!({"labels": {"app": "web"}}));
    assert_eq!(shown["spec"]["selector"], json!({"matchLabels": {"app": "web"}}));
    assert_eq!(shown["status"]["conditions"][0]["message"], "kept");
}

#[test]
fn other_kinds_show_no_programs_either_wherever_they_hold_them() {
    let metadata = json!({"annotations": {"note": "hunter2-note"}});
    let found = json!({
        "kind": "Job",
        "spec": {
            "jobTemplate": {"metadata": metadata, "spec": {"template": {"metadata": metadata, "spec": pod_spec()}}},
            "volumeClaimTemplates": [{"metadata": metadata}],
            "podMetadata": metadata,
            // A workflow, whose container is one and not of a list.
            "templates": [{"container": {"command": ["hunter2"], "args": ["hunter2"],
                "env": [{"name": "A", "value": "hunter2"}]}}],
            // A collector, whose arguments and environment are maps.
            "args": {"token": "hunter2"}, "env": {"TOKEN": "hunter2"},
        },
        "status": {"steps": [{"terminated": {"exitCode": 0, "message": "hunter2-log"}}]},
    });
    let shown = shown_as(pods(), found).expect("shown");
    assert!(!shown.to_string().contains(HIDDEN), "{shown:#}");
}

#[test]
fn what_only_shares_a_name_with_a_program_is_shown() {
    let schema =
        json!({"openAPIV3Schema": {"properties": {"args": {"type": "array"}, "env": {"type": "array"}}}});
    for found in [
        json!({"data": {"command": "kept", "args": "kept", "env": "kept", "exec": "kept"}}),
        json!({"spec": {"selector": {"command": "kept"}, "ports": [{"port": 80}]}}),
        json!({"spec": {"groups": [{"rules": [{"alert": "Down", "annotations": {"summary": "kept"}}]}]}}),
        json!({"spec": {"versions": [{"schema": schema}]}}),
        json!({"kind": "Event", "reason": "Unhealthy", "message": "kept"}),
    ] {
        assert_eq!(shown_as(pods(), found.clone()).expect("shown"), found);
    }
}
