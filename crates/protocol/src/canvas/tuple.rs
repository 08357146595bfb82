//! Result tuples: how clients find the results of what a task sent.

use crate::json::Json;
use crate::write;

/// A result as Celery's clients know it: `[[id, parent], members]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultTuple {
    /// Task id or group id.
    pub id: String,
    /// The step before it in a chain.
    pub parent: Option<Box<ResultTuple>>,
    /// Of a group: its members.
    pub members: Option<Vec<ResultTuple>>,
}

impl ResultTuple {
    /// The result of a task.
    pub fn task(id: &str) -> ResultTuple {
        ResultTuple {
            id: id.to_owned(),
            parent: None,
            members: None,
        }
    }

    /// The results of a group.
    pub fn group(id: &str, members: Vec<ResultTuple>) -> ResultTuple {
        ResultTuple {
            id: id.to_owned(),
            parent: None,
            members: Some(members),
        }
    }

    /// As it stands in `children`, in a saved group, and as the result of `celery.chunks`.
    pub fn to_json(&self) -> Json {
        let parent = self.parent.as_ref().map_or_else(Json::null, |parent| parent.to_json());
        let members = self.members.as_ref().map_or_else(Json::null, |members| {
            write::array(members.iter().map(ResultTuple::to_json))
        });
        write::array([write::array([Json::string(&self.id), parent]), members])
    }

    /// Reads one; `None` for another shape. A bare id means a task.
    pub fn parse(json: &Json) -> Option<ResultTuple> {
        if let Some(id) = json.text() {
            return Some(ResultTuple::task(&id));
        }
        let [head, members] = <[Json; 2]>::try_from(json.elements()?).ok()?;
        let (id, parent) = if let Some(id) = head.text() {
            (id, None)
        } else {
            let [id, parent] = <[Json; 2]>::try_from(head.elements()?).ok()?;
            (id.text()?, Some(parent).filter(|parent| !parent.is_null()))
        };
        let parent = match parent {
            Some(parent) => Some(Box::new(ResultTuple::parse(&parent)?)),
            None => None,
        };
        let members = match members.elements() {
            Some(members) => Some(members.iter().map(ResultTuple::parse).collect::<Option<_>>()?),
            None => None,
        };
        Some(ResultTuple { id, parent, members })
    }

    /// Hangs `parent` on the first result in the line that has none.
    pub(crate) fn set_root(&mut self, parent: ResultTuple) {
        match &mut self.parent {
            Some(before) => before.set_root(parent),
            empty => *empty = Some(Box::new(parent)),
        }
    }
}
