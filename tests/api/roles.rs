//! The paths that a node serves, by its roles.

use crate::support::gateway::{TestGateway, client};

#[tokio::test]
async fn a_node_that_only_dispatches_serves_no_tenant() {
    let gateway = TestGateway::start().await;
    let node = gateway.new_node_as(&["dispatch"]).await;
    let status = async |path: &str| {
        let url = format!("http://{}{path}", node.address());
        client().get(url).bearer_auth(&gateway.key).send().await.unwrap().status().as_u16()
    };
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(status(path).await, 200, "{path}");
    }
    for path in ["/v1/messages", "/v1/connections", "/v1/providers", "/openapi.json", "/docs/"] {
        assert_eq!(status(path).await, 404, "{path}");
    }
}
