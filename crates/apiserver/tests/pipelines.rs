//! Pipelines and versions through REST: upload, read, list, change, delete.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{ADD, quote, start};

#[tokio::test]
async fn an_uploaded_pipeline_can_be_read_listed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let up =
        server.upload("/apis/v2beta1/pipelines/upload?name=adder&description=d", "add.yaml", ADD.as_bytes()).await.ok();
    let id = up["pipeline_id"].as_str().unwrap().to_owned();
    assert_eq!((&up["name"], &up["display_name"], &up["description"]), (&json!("adder"), &json!("adder"), &json!("d")));
    assert!(up.get("namespace").is_none());
    assert!(up["created_at"].as_str().unwrap().ends_with('Z'));

    assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/{id}")).await.ok(), up);
    assert_eq!(server.get("/apis/v2beta1/pipelines/names/adder").await.ok(), up);
    let list = server.get("/apis/v2beta1/pipelines?namespace=kubeflow").await.ok();
    assert_eq!((list["pipelines"][0].clone(), list["total_size"].clone()), (up.clone(), json!(1)));
    assert!(list.get("next_page_token").is_none());

    let versions = server.get(&format!("/apis/v2beta1/pipelines/{id}/versions")).await.ok();
    assert_eq!(versions["total_size"], 1);
    let version = versions["pipeline_versions"][0]["pipeline_version_id"].as_str().unwrap();
    let got = server.get(&format!("/apis/v2beta1/pipelines/whatever/versions/{version}")).await.ok();
    assert_eq!(got["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");
    assert_eq!(got["pipeline_spec"]["root"]["dag"]["tasks"]["add"]["componentRef"]["name"], "comp-add");

    let second = format!("/apis/v2beta1/pipelines/upload_version?name=v2&pipelineid={id}");
    let second = server.upload(&second, "add.yaml", ADD.as_bytes()).await.ok();
    assert_eq!((&second["name"], &second["pipeline_id"]), (&json!("v2"), &json!(id)));

    server.delete(&format!("/apis/v2beta1/pipelines/{id}")).await.fails(400, "existing pipeline versions");
    assert_eq!(server.delete(&format!("/apis/v2beta1/pipelines/{id}?cascade=true")).await.ok(), json!({}));
    let gone = server.get(&format!("/apis/v2beta1/pipelines/{id}")).await.fails(404, "not found");
    assert_eq!(
        (&gone["code"], &gone["details"][0]["message"]),
        (&json!(5), &json!(format!("Pipeline {id} not found")))
    );
    server.get(&format!("/apis/v2beta1/pipelines/x/versions/{version}")).await.fails(404, "PipelineVersion");
    server.stop().await;
}

#[tokio::test]
async fn bad_packages_are_refused_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let path = "/apis/v2beta1/pipelines/upload?name=x";
    for (file, content, text) in [
        ("a.yaml", "a: [1, 2".to_owned(), "failed to parse pipeline spec YAML"),
        ("a.yaml", "hello: world".to_owned(), "unknown template format"),
        ("a.yaml", ADD.replace("name: add-numbers", "name: ''"), "pipelineInfo.name"),
        ("a.yaml", ADD.replace("name: add-numbers", "name: Bad_Name"), "pipeline's name must contain only lowercase"),
        ("a.yaml", ADD.replace("2.1.0", "2.0.0"), "KFP only supports schema version 2.1.0"),
        ("a.bin", ADD.to_owned(), "Unexpected pipeline file format"),
        ("a.zip", "PKgarbage".to_owned(), "Not a valid zip file"),
    ] {
        let answer = server.upload(path, file, content.as_bytes()).await.fails(400, text);
        assert!(answer["error_message"].as_str().is_some(), "{answer}");
    }
    let none = server.send("POST", path, "multipart/form-data; boundary=XX", b"--XX--\r\n".to_vec()).await;
    none.fails(400, "Failed to read pipeline from file");
    let large = vec![b'#'; kfp_compiler::package::MAX_BYTES + 1];
    server.upload(path, "a.yaml", &large).await.fails(400, "File size too large (33554433 bytes)");
    // Larger than the usual limits of HTTP frameworks, but allowed.
    let comment = format!("{ADD}#{}\n", "x".repeat(5 << 20));
    server.upload("/apis/v2beta1/pipelines/upload?name=big", "a.yaml", comment.as_bytes()).await.ok();
    let long = format!("/apis/v2beta1/pipelines/upload?name={}", "n".repeat(128));
    server.upload(&long, "a.yaml", ADD.as_bytes()).await.fails(400, "PipelineVersion.Name length cannot exceed 127");
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 1);
    server.stop().await;
}

#[tokio::test]
async fn names_are_unique_and_needed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let create = |body| server.post("/apis/v2beta1/pipelines", body);
    create(json!({"display_name": "p"})).await.ok();
    let taken = create(json!({"name": "p"})).await.fails(409, "The name p already exist. Please specify a new name");
    assert_eq!(taken["code"], 6);
    create(json!({"description": "nameless"})).await.fails(400, "name is required");
    create(json!({"name": "p2", "surprise": 1})).await.fails(400, "surprise");
    server
        .upload("/apis/v2beta1/pipelines/upload?name=p", "a.yaml", ADD.as_bytes())
        .await
        .fails(409, "Failed to create a pipeline and a pipeline version");
    server
        .upload("/apis/v2beta1/pipelines/upload_version?pipelineid=nope", "a.yaml", ADD.as_bytes())
        .await
        .fails(404, "Failed to create a pipeline version");
    server.stop().await;
}

#[tokio::test]
async fn tags_are_set_replaced_cleared_and_filtered_by() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let made = server.post("/apis/v2beta1/pipelines", json!({"name": "a", "tags": {"team": "x"}})).await.ok();
    server.post("/apis/v2beta1/pipelines", json!({"name": "b"})).await.ok();
    let path = format!("/apis/v2beta1/pipelines/{}", made["pipeline_id"].as_str().unwrap());
    let filter = |key: &str, op: &str| {
        quote(&json!({"predicates": [{"operation": op, "key": key, "string_value": "x"}]}).to_string())
    };
    let found = server.get(&format!("/apis/v2beta1/pipelines?filter={}", filter("tags.team", "EQUALS"))).await.ok();
    assert_eq!((&found["total_size"], &found["pipelines"][0]["name"]), (&json!(1), &json!("a")));
    server
        .get(&format!("/apis/v2beta1/pipelines?filter={}", filter("tags.team", "NOT_EQUALS")))
        .await
        .fails(400, "only EQUALS operation is supported for tag filtering");
    let kept = server.patch(&path, json!({"display_name": "Shown"})).await.ok();
    assert_eq!((&kept["display_name"], &kept["tags"]), (&json!("Shown"), &json!({"team": "x"})));
    let replaced = server.patch(&path, json!({"tags": {"other": "y"}})).await.ok();
    assert_eq!(replaced["tags"], json!({"other": "y"}));
    let cleared = server.patch(&path, json!({"tags": {}})).await.ok();
    assert!(cleared.get("tags").is_none(), "{cleared}");
    server.patch(&path, json!({"tags": {"a.b": "y"}})).await.fails(400, "must not contain '.'");
    server.stop().await;
}

#[tokio::test]
async fn pages_continue_where_they_stopped_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    for number in 0..5 {
        server.post("/apis/v2beta1/pipelines", json!({"name": format!("p{number}")})).await.ok();
    }
    for (sort, expected) in [("name", ["p0", "p1", "p2", "p3", "p4"]), ("name desc", ["p4", "p3", "p2", "p1", "p0"])] {
        let mut names = Vec::new();
        let mut token = String::new();
        loop {
            // The token alone continues the same query.
            let sort = if token.is_empty() { quote(sort) } else { String::new() };
            let url = format!("/apis/v2beta1/pipelines?page_size=2&sort_by={sort}&page_token={}", quote(&token));
            let page = server.get(&url).await.ok();
            assert_eq!(page["total_size"], 5);
            names.extend(page["pipelines"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_owned()));
            match page.get("next_page_token") {
                Some(next) => token = next.as_str().unwrap().to_owned(),
                None => break,
            }
        }
        assert_eq!(names, expected, "{sort}");
    }
    let first = server.get("/apis/v2beta1/pipelines?page_size=2&sort_by=name").await.ok();
    let token = quote(first["next_page_token"].as_str().unwrap());
    let other = format!("/apis/v2beta1/pipelines?page_token={token}&sort_by={}", quote("name desc"));
    server.get(&other).await.fails(400, "page token does not match");
    server.get(&format!("/apis/v2beta1/experiments?page_token={token}")).await.fails(400, "Invalid page token");
    server.get("/apis/v2beta1/pipelines?page_token=nonsense").await.fails(400, "Invalid page token");
    server
        .get("/apis/v2beta1/pipelines?page_size=-1")
        .await
        .fails(400, "The page size should be greater than 0. Got -1");
    server.get("/apis/v2beta1/pipelines?sort_by=nope").await.fails(400, "Invalid sorting field");
    server.stop().await;
}

#[tokio::test]
async fn unbuilt_and_unknown_paths_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    assert_eq!(server.get("/apis/v2beta1/healthz").await.ok()["pipeline_store"], "database");
    assert_eq!(server.get("/apis/v1beta1/healthz").await.ok()["multi_user"], false);
    for untidy in ["//apis/v1beta1//healthz", "/apis/v1beta1/./healthz", "/apis/x/../v1beta1/healthz"] {
        assert_eq!(server.get(untidy).await.status, 301, "{untidy}");
    }
    server.get("/apis/v2beta1/nothing").await.fails(404, "Not Found");
    assert_eq!(server.get("/nothing").await.status, 404);
    server.get("/apis/v2beta1/filters").await.fails(501, "DummyFilterService/GetFilter is not implemented");
    assert_eq!(server.get("/apis/v1beta1/auth").await.ok(), json!({}));
    server.send("PUT", "/apis/v2beta1/pipelines", "application/json", vec![]).await.fails(501, "Method Not Allowed");
    let url =
        json!({"pipeline": {"name": "x"}, "pipeline_version": {"package_url": {"pipeline_url": "file:///etc/passwd"}}});
    server.post("/apis/v2beta1/pipelines/create", url).await.fails(400, "Pipeline URL validation failed");
    server.stop().await;
}

#[tokio::test]
async fn pipelines_are_downloaded_by_url() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let files = axum::Router::new()
        .route("/p/add.yaml", axum::routing::get(|| async { ADD }))
        .route("/moved.yaml", axum::routing::get(|| async { axum::response::Redirect::temporary("/p/add.yaml") }));
    tokio::spawn(async move { axum::serve(listener, files).await.unwrap() });
    let create = |path: &str| {
        let body = json!({"pipeline": {"display_name": "by url"},
                          "pipeline_version": {"package_url": {"pipeline_url": format!("{url}{path}")}}});
        server.post("/apis/v2beta1/pipelines/create", body)
    };
    let made = create("/moved.yaml?x=1").await.ok();
    create("/nothing.yaml").await.fails(400, "request returned 404 Not Found");
    let id = made["pipeline_id"].as_str().unwrap();
    let path = format!("/apis/v2beta1/pipelines/{id}/versions");
    let version =
        json!({"pipeline_id": id, "name": "second", "package_url": {"pipeline_url": format!("{url}/p/add.yaml")}});
    let version = server.post(&path, version).await.ok();
    assert_eq!(version["package_url"]["pipeline_url"], format!("{url}/p/add.yaml"));
    // The parent in the path counts, but the body has to name one too.
    let mut third =
        json!({"pipeline_id": "other", "name": "third", "package_url": {"pipeline_url": format!("{url}/p/add.yaml")}});
    assert_eq!(server.post(&path, third.clone()).await.ok()["pipeline_id"], id);
    third["pipeline_id"] = json!("");
    server.post(&path, third).await.fails(400, "Parent pipeline id is empty");
    assert_eq!(version["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");
    assert_eq!(server.get(&path).await.ok()["total_size"], 3);
    server.stop().await;
}
