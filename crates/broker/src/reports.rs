//! States of target clusters, from the workers that saw them to the operator that writes them into status.

use serde::{Deserialize, Serialize};

use crate::control::failed;
use crate::{Broker, Error};

/// What a `umbel.cluster.sync` job saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Namespace of the TargetCluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Uid of the WorkerPool whose job reports.
    pub pool: String,
    /// Worker in Redis that reports.
    pub worker: String,
    /// The state, as the job built it.
    pub body: serde_json::Value,
}

impl Broker {
    /// Leaves a report for the operator; a newer one replaces it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn report_cluster(&self, report: &ClusterReport) -> Result<(), Error> {
        redis::cmd("HSET")
            .arg(self.keys.umbel(&format!("clusters:{}", report.namespace)))
            .arg(&report.name)
            .arg(serde_json::to_string(report).unwrap_or_default())
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("HSET umbel:clusters"))
    }

    /// The last report of each cluster of a namespace. What cannot be read is left out.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn cluster_reports(&self, namespace: &str) -> Result<Vec<ClusterReport>, Error> {
        let fields = self
            .fields(
                &self.keys.umbel(&format!("clusters:{namespace}")),
                "HGETALL umbel:clusters",
            )
            .await?;
        Ok(fields
            .values()
            .filter_map(|body| serde_json::from_str(body).ok())
            .collect())
    }
}
