use super::*;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest};

fn strikes(faults: &mut Faults, rpc: Rpc, client: &str) -> bool {
    faults.plan(Place::Request, rpc, client, &RangeRequest::default()).is_some()
}

#[test]
fn counts_what_meets_its_conditions() {
    let mut faults = Faults::new(0);
    let fault = faults.set(On::rpc(Rpc::Range).client("a").nth(2), Do::cut());
    let struck: Vec<_> = [(Rpc::Range, "a"), (Rpc::Put, "a"), (Rpc::Range, "b"), (Rpc::Range, "a")]
        .into_iter()
        .map(|(rpc, client)| strikes(&mut faults, rpc, client))
        .collect();
    assert_eq!(struck, [false, false, false, true]);
    assert_eq!((fault.seen(), fault.hits()), (2, 1));
}

#[test]
fn once_is_once_and_removed_is_gone() {
    let mut faults = Faults::new(0);
    let once = faults.set(On::any().once(), Do::cut());
    assert!(strikes(&mut faults, Rpc::Range, "a") && !strikes(&mut faults, Rpc::Range, "a"));
    let always = faults.set(On::any(), Do::cut());
    assert!(strikes(&mut faults, Rpc::Range, "a"));
    always.remove();
    assert!(!strikes(&mut faults, Rpc::Range, "a"));
    assert_eq!((once.hits(), always.hits()), (1, 1));
}

#[test]
fn chance_repeats_with_its_seed() {
    let draw = |seed| -> Vec<bool> {
        let mut faults = Faults::new(seed);
        faults.set(On::any().probability(0.5), Do::cut());
        (0..64).map(|_| strikes(&mut faults, Rpc::Range, "a")).collect()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
fn predicates_see_the_decoded_message() {
    let mut faults = Faults::new(0);
    faults.set(On::any().matching(|put: &PutRequest| put.lease == 7), Do::cut());
    let mut plan = |lease| {
        let put = PutRequest { lease, ..Default::default() };
        faults.plan(Place::Request, Rpc::Put, "a", &put).is_some()
    };
    assert!(plan(7) && !plan(8));
    assert!(!strikes(&mut faults, Rpc::Range, "a"), "another type never matches");
}

#[test]
fn delays_add_up_and_the_first_end_counts() {
    let mut faults = Faults::new(0);
    faults.set(On::any(), Do::delay(Duration::from_secs(1)));
    faults.set(On::any(), Do::lose_reply().after(Duration::from_secs(2)));
    faults.set(On::any(), Do::vanish());
    let plan = faults.plan(Place::Request, Rpc::Put, "a", &()).unwrap_or_default();
    assert_eq!(plan.delay, Duration::from_secs(3));
    assert!(matches!(plan.end, Some(End::LoseReply(LoseReply::Error))));
}
