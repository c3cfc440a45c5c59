//! The Lease service's requests, and the ends of leases.

use std::time::Duration;

use super::{Caller, Core};
use crate::fake::refusal::Refusal;
use crate::fake::txn;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};

impl Core {
    pub(crate) fn grant(
        &mut self,
        request: &LeaseGrantRequest,
        caller: &Caller<'_>,
    ) -> Result<LeaseGrantResponse, Refusal> {
        self.auth.require(caller)?;
        self.propose(request)?;
        self.check_alarms(true)?;
        let (id, ttl) = self.lessor.grant(request.id, request.ttl, caller.now)?;
        Ok(LeaseGrantResponse { header: self.header(), id, ttl, error: String::new() })
    }

    pub(crate) fn revoke(
        &mut self,
        request: &LeaseRevokeRequest,
        caller: &Caller<'_>,
    ) -> Result<LeaseRevokeResponse, Refusal> {
        let identity = self.auth.require(caller)?;
        self.propose(request)?;
        self.check_alarms(false)?;
        self.may_write_keys_of(identity.as_ref(), request.id)?;
        self.end_lease(request.id)?;
        Ok(LeaseRevokeResponse { header: self.header() })
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(crate) fn end_lease(&mut self, id: i64) -> Result<(), Refusal> {
        let keys = self.lessor.remove(id)?;
        let changes = txn::delete_keys(&mut self.store, keys);
        self.publish(changes);
        Ok(())
    }

    /// Ends the first lease whose time is over, in a revision of its own.
    pub(crate) fn expire_one(&mut self, now: Duration) -> Option<i64> {
        let id = self.lessor.expired(now)?;
        self.index += 1;
        self.end_lease(id).ok()?;
        Some(id)
    }

    /// There is a new leader, who knows of the leases only how long each was granted for.
    pub(crate) fn elect(&mut self, now: Duration) {
        self.has_leader = true;
        self.term += 1;
        self.index += 1;
        self.lessor.promote(now);
    }

    pub(crate) fn keep_alive(
        &mut self,
        request: &LeaseKeepAliveRequest,
        caller: &Caller<'_>,
    ) -> Result<LeaseKeepAliveResponse, Refusal> {
        let identity = self.auth.require(caller)?;
        self.may_write_keys_of(identity.as_ref(), request.id)?;
        // A lease that is gone is not an error: it has a TTL of 0.
        let ttl = self.lessor.renew(request.id, caller.now).unwrap_or(0);
        Ok(LeaseKeepAliveResponse { header: self.header(), id: request.id, ttl })
    }

    pub(crate) fn time_to_live(
        &mut self,
        request: &LeaseTimeToLiveRequest,
        caller: &Caller<'_>,
    ) -> Result<LeaseTimeToLiveResponse, Refusal> {
        let identity = self.auth.require(caller)?;
        if request.keys {
            self.may_read_keys_of(identity.as_ref(), request.id)?;
        }
        let header = self.header();
        Ok(match self.lessor.get(request.id) {
            None => LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() },
            Some(lease) => LeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: lease.remaining(caller.now),
                granted_ttl: lease.ttl,
                keys: if request.keys { lease.keys.iter().cloned().collect() } else { Vec::new() },
            },
        })
    }

    pub(crate) fn leases(
        &mut self,
        _: &LeaseLeasesRequest,
        caller: &Caller<'_>,
    ) -> Result<LeaseLeasesResponse, Refusal> {
        let identity = self.auth.require(caller)?;
        for (id, _) in self.lessor.by_deadline() {
            self.may_read_keys_of(identity.as_ref(), id)?;
        }
        let leases = self.lessor.by_deadline().map(|(id, _)| LeaseStatus { id }).collect();
        Ok(LeaseLeasesResponse { header: self.header(), leases })
    }
}
