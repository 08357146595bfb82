//! What kinds a cluster serves, in its own words: an answer of another form is an error, and never an empty list.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use umbel_clusters::{Error, Target};

use super::site::REQUEST;

/// A resource of a group and version; with a slash in its name a subresource.
#[derive(Debug, Deserialize)]
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Resources {
    #[serde(rename = "APIResourceList")]
    // Go writes an empty list as null.
    List { resources: Option<Vec<Resource>> },
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Core {
    #[serde(rename = "APIVersions")]
    Versions { versions: Vec<String> },
}

#[derive(Deserialize)]
#[serde(tag = "kind")]
enum Groups {
    #[serde(rename = "APIGroupList")]
    List { groups: Vec<Group> },
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// As objects name it.
pub(super) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// What is served of a group in a version; a 404 where the version is not served.
pub(super) async fn resources(target: &Target, group: &str, version: &str) -> Result<Vec<Resource>, Error> {
    let root = if group.is_empty() { "api" } else { "apis" };
    let path = format!("/{root}/{}", api_version(group, version));
    let Resources::List { resources } = ask(target, &path).await?;
    Ok(resources.unwrap_or_default())
}

/// In which versions a group is served, the preferred one first; none if it is not.
pub(super) async fn versions(target: &Target, group: &str) -> Result<Vec<String>, Error> {
    if group.is_empty() {
        let Core::Versions { versions } = ask(target, "/api").await?;
        return Ok(versions);
    }
    let Groups::List { groups } = ask(target, "/apis").await?;
    let found = groups.into_iter().find(|one| one.name == group);
    let versions = found.map(|group| group.versions).unwrap_or_default();
    Ok(versions.into_iter().map(|one| one.version).collect())
}

async fn ask<T: DeserializeOwned>(target: &Target, path: &str) -> Result<T, Error> {
    let client = target.client();
    let request = async {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(kube::Error::HttpError)?;
        client.request::<T>(request).await
    };
    target.ask("look up a kind", REQUEST, request).await
}
