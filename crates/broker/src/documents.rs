//! What a client does with results: reads them, forgets them, saves groups, opens chords.

use crate::control::failed;
use crate::{Broker, Error, ResultStore, Watcher};

/// Documents read in one round trip.
const TOGETHER: usize = 500;

impl ResultStore {
    /// Wakes those who wait for keys of this database.
    pub fn watcher(&self) -> Watcher {
        Watcher::new(self.broker.config.clone())
    }

    /// Host, port and database, for people.
    pub fn server(&self) -> String {
        self.broker.server()
    }

    /// The documents of these tasks, in order; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn documents(&self, ids: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut documents = Vec::with_capacity(ids.len());
        for ids in ids.chunks(TOGETHER) {
            let mut command = redis::cmd("MGET");
            for id in ids {
                command.arg(self.key(id));
            }
            let found: Vec<Option<Vec<u8>>> = command
                .query_async(&mut self.connection())
                .await
                .map_err(failed("MGET results"))?;
            documents.extend(found);
        }
        Ok(documents)
    }

    /// Deletes the documents of these tasks; returns how many there were.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn forget(&self, ids: &[String]) -> Result<u64, Error> {
        let mut gone = 0;
        for ids in ids.chunks(TOGETHER) {
            let mut command = redis::cmd("DEL");
            for id in ids {
                command.arg(self.key(id));
            }
            let deleted: u64 = command
                .query_async(&mut self.connection())
                .await
                .map_err(failed("DEL results"))?;
            gone += deleted;
        }
        Ok(gone)
    }

    /// Saves the structure of a group, as `GroupResult.save` does; `ttl` in seconds, 0 for ever.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn save_group(&self, group: &str, document: &[u8], ttl: u64) -> Result<(), Error> {
        let key = self.chord_keys(group).group;
        let mut pipe = redis::pipe();
        let set = pipe.atomic().cmd("SET").arg(&key).arg(document);
        if ttl > 0 {
            set.arg("EX").arg(ttl);
        }
        pipe.cmd("PUBLISH").arg(&key).arg(document);
        pipe.exec_async(&mut self.connection())
            .await
            .map_err(failed("SET group"))
    }

    /// The saved structure of a group.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn saved_group(&self, group: &str) -> Result<Option<Vec<u8>>, Error> {
        redis::cmd("GET")
            .arg(self.chord_keys(group).group)
            .query_async(&mut self.connection())
            .await
            .map_err(failed("GET group"))
    }

    /// Deletes the saved structure of a group; whether there was one.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn delete_group(&self, group: &str) -> Result<bool, Error> {
        redis::cmd("DEL")
            .arg(self.chord_keys(group).group)
            .query_async(&mut self.connection())
            .await
            .map_err(failed("DEL group"))
    }

    /// Says how many parts a chord has: to be done before its last member is sent. `ttl` in seconds.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    pub async fn open_chord(&self, group: &str, size: u64, ttl: u64) -> Result<(), Error> {
        let keys = self.chord_keys(group);
        let mut pipe = redis::pipe();
        pipe.cmd("DEL").arg(keys.claim);
        pipe.cmd("SET").arg(keys.size).arg(size).arg("EX").arg(ttl.max(1));
        pipe.exec_async(&mut self.connection())
            .await
            .map_err(failed("SET chord"))
    }

    /// Keeps the structure of a chord's header, where groups are among its members. `ttl` in seconds.
    ///
    /// # Errors
    /// [`Error::Call`]: repeat it.
    pub async fn keep_structure(&self, group: &str, document: &[u8], ttl: u64) -> Result<(), Error> {
        redis::cmd("SET")
            .arg(self.chord_keys(group).group)
            .arg(document)
            .arg("EX")
            .arg(ttl.max(1))
            .query_async(&mut self.connection())
            .await
            .map_err(failed("SET group"))
    }
}

impl Broker {
    /// Sends a request of remote control; returns how many subscribers the channel had.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn request(&self, request: &umbel_protocol::event::Publication) -> Result<u64, Error> {
        redis::cmd("PUBLISH")
            .arg(self.config.channel(&request.exchange, &request.routing_key))
            .arg(&request.payload)
            .query_async(&mut self.connection.clone())
            .await
            .map_err(failed("PUBLISH request"))
    }
}
