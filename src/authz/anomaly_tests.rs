use proptest::prelude::*;

use super::*;

const HOME: Network = Network::V4([10, 0, 0]);
const ABROAD: Network = Network::V4([203, 0, 113]);
const ALL: [AnomalySensitivity; 3] =
    [AnomalySensitivity::Low, AnomalySensitivity::Medium, AnomalySensitivity::High];

fn watching(sensitivity: AnomalySensitivity) -> Regime {
    Regime { limits: Limits::of(sensitivity), refuses: false }
}

fn refusing(sensitivity: AnomalySensitivity) -> Regime {
    Regime { refuses: true, ..watching(sensitivity) }
}

fn detector() -> (Detector, Duration) {
    (Detector::default(), Duration::ZERO)
}

/// A detector to which a caller has become known by calls from home, one each minute.
fn settled(calls: u32) -> (Detector, Duration) {
    let (mut detector, mut now) = detector();
    for _ in 0..calls {
        let found = detector.judge_call("ci", Some(HOME), refusing(AnomalySensitivity::High), now);
        assert_eq!(found, None);
        now += MINUTE;
    }
    (detector, now)
}

#[test]
fn who_is_refused_again_and_again_is_probing_until_a_minute_has_passed() {
    for (sensitivity, usual) in ALL.into_iter().zip([60, 20, 10]) {
        let (mut detector, start) = detector();
        let judged =
            |detector: &mut Detector, now| detector.judge_call("ci", None, refusing(sensitivity), now);
        for _ in 0..usual {
            detector.note_refusal("ci", start);
            assert_eq!(judged(&mut detector, start), None);
        }
        detector.note_refusal("ci", start);
        let found = judged(&mut detector, start).expect("one too many");
        assert_eq!(found, Anomaly::ManyRefusals { seen: usual as u64 + 1, usual });
        assert_eq!(found.as_str(), "many_refusals");
        assert_eq!(
            found.to_string(),
            format!("{} refused calls within a minute; up to {usual} are usual", usual + 1)
        );
        assert_eq!(detector.judge_call("other", None, refusing(sensitivity), start), None);
        assert!(judged(&mut detector, start + Duration::from_secs(50)).is_some());
        assert_eq!(judged(&mut detector, start + 2 * MINUTE), None, "it is over by itself");
    }
}

#[test]
fn a_caller_far_above_its_own_average_is_noticed_and_one_that_was_always_fast_is_not() {
    let burst = |usual_calls: u32| {
        let (mut detector, mut now) = detector();
        let regime = watching(AnomalySensitivity::Medium);
        for _ in 0..20 {
            for _ in 0..usual_calls {
                assert_eq!(detector.judge_call("ci", None, regime, now), None);
            }
            now += MINUTE;
        }
        (0..1000).find_map(|_| detector.judge_call("ci", None, regime, now))
    };
    assert_eq!(burst(5), Some(Anomaly::Burst { seen: 241, usual: 5 }), "the floor counts");
    assert_eq!(burst(50), Some(Anomaly::Burst { seen: 501, usual: 50 }), "its own average counts");
    assert_eq!(burst(200), None);
}

#[test]
fn a_burst_that_is_refused_is_over_by_itself_and_does_not_become_usual() {
    let (mut detector, now) = settled(SETTLED);
    let regime = refusing(AnomalySensitivity::High);
    let now = now + MINUTE;
    let answered = (0..10_000).filter(|_| detector.judge_call("ci", None, regime, now).is_none()).count();
    assert_eq!(answered, 60);
    let later = now + 2 * MINUTE;
    assert_eq!(detector.judge_call("ci", None, regime, later), None);
    assert!(detector.callers["ci"].average < 10.0, "{:?}", detector.callers["ci"]);
}

#[test]
fn a_new_caller_has_no_usual_rate_yet() {
    let (mut detector, now) = detector();
    for _ in 0..10_000 {
        assert_eq!(detector.judge_call("ci", Some(HOME), refusing(AnomalySensitivity::High), now), None);
    }
}

#[test]
fn a_credential_that_is_well_known_and_comes_from_elsewhere_stays_refused_there_and_works_at_home() {
    let regime = refusing(AnomalySensitivity::High);
    let (mut detector, mut now) = settled(50);
    for _ in 0..100 {
        let found = detector.judge_call("ci", Some(ABROAD), regime, now).expect("it is new");
        assert_eq!(found, Anomaly::NewNetwork { network: ABROAD, known: vec![HOME], calls: 50 });
        assert_eq!(
            found.to_string(),
            "a call from 203.0.113.0/24; the 50 calls before came from 10.0.0.0/24"
        );
        now += Duration::from_secs(86_400);
    }
    assert_eq!(detector.judge_call("ci", Some(HOME), regime, now), None);
    assert_eq!(detector.judge_call("ci", None, regime, now), None, "somebody has named its networks");
    assert_eq!(detector.judge_call("rotated", Some(ABROAD), regime, now), None, "a new key begins anew");
    let (mut detector, now) = settled(49);
    assert_eq!(detector.judge_call("ci", Some(ABROAD), regime, now), None, "it is not well known yet");
}

#[test]
fn where_anomalies_are_only_watched_a_new_network_is_told_once() {
    let (mut detector, now) = settled(50);
    let regime = watching(AnomalySensitivity::High);
    assert!(detector.judge_call("ci", Some(ABROAD), regime, now).is_some());
    assert_eq!(detector.judge_call("ci", Some(ABROAD), regime, now), None);
}

#[test]
fn a_credential_that_comes_from_everywhere_has_no_new_networks() {
    let (mut detector, now) = detector();
    let regime = refusing(AnomalySensitivity::High);
    for i in 0..200_u8 {
        let found = detector.judge_call("ci", Some(Network::V4([10, 0, i % 9])), regime, now);
        assert_eq!(found, None);
    }
    assert_eq!(detector.judge_call("ci", Some(ABROAD), regime, now), None);
}

#[test]
fn networks_are_as_coarse_as_addresses_change() {
    let network = |text: &str| Network::from(text.parse::<IpAddr>().expect("an address"));
    assert_eq!(network("10.0.0.7"), network("10.0.0.250"));
    assert_eq!(network("10.0.0.7"), network("::ffff:10.0.0.8"), "the same address on a socket of IPv6");
    assert_ne!(network("10.0.0.7"), network("10.0.1.7"));
    assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
    assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
    assert_eq!(network("10.0.0.7").to_string(), "10.0.0.0/24");
    assert_eq!(network("2001:db8::1").to_string(), "2001:db8::/64");
}

#[test]
fn the_first_destructive_call_after_many_others_waits_until_somebody_can_have_looked() {
    let regime = refusing(AnomalySensitivity::High);
    let (mut detector, now) = settled(200);
    let mut delete = |class, now| {
        assert_eq!(detector.judge_call("ci", Some(HOME), regime, now), None);
        detector.judge_class("ci", class, regime, now)
    };
    assert_eq!(delete(Class::Read, now), None);
    assert_eq!(delete(Class::Sensitive, now), None);
    let found = delete(Class::Destructive, now).expect("the first one");
    assert_eq!(found, Anomaly::FirstOfClass { class: Class::Destructive, calls: 202 });
    assert_eq!(found.to_string(), "the first destructive call after 202 calls without one");
    assert!(delete(Class::Destructive, now + HOLD - Duration::from_secs(1)).is_some());
    assert_eq!(delete(Class::Destructive, now + HOLD), None, "nobody has stopped it");
    assert_eq!(delete(Class::Destructive, now + HOLD), None);
    assert_eq!(delete(Class::Write, now + HOLD), None, "less dangerous is known too");
}

#[test]
fn a_change_that_waits_does_not_wait_for_a_destruction_too() {
    let regime = refusing(AnomalySensitivity::High);
    let (mut detector, now) = settled(10_000);
    let mut first = |class, now| detector.judge_class("ci", class, regime, now).is_some();
    assert!(first(Class::Write, now));
    assert!(first(Class::Destructive, now + HOLD), "it is the first of its kind");
    assert!(!first(Class::Write, now + HOLD), "the change has waited");
    assert!(
        first(Class::Destructive, now + HOLD + HOLD - Duration::from_secs(1)),
        "it waits for its own time"
    );
    assert!(!first(Class::Destructive, now + HOLD + HOLD));
}

#[test]
fn changes_are_a_surprise_at_high_sensitivity_only_and_hide_no_destruction() {
    for (sensitivity, surprises) in ALL.into_iter().zip([0, 0, 1]) {
        let (mut detector, now) = settled(10_000);
        let mut first = |class| detector.judge_class("ci", class, watching(sensitivity), now);
        assert_eq!(first(Class::Write).into_iter().count(), surprises, "{sensitivity:?}");
        assert_eq!(first(Class::Write), None);
        assert_eq!(first(Class::Destructive).map(|found| found.as_str()), Some("first_destructive_call"));
        assert_eq!(first(Class::Destructive), None, "told once");
    }
}

#[test]
fn a_caller_that_destroys_from_the_start_is_as_it_is() {
    let (mut detector, now) = detector();
    for _ in 0..1000 {
        let regime = refusing(AnomalySensitivity::High);
        assert_eq!(detector.judge_call("ci", Some(HOME), regime, now), None);
        assert_eq!(detector.judge_class("ci", Class::Destructive, regime, now), None);
    }
}

#[test]
fn only_so_many_callers_are_remembered_and_those_that_call_are() {
    let (mut detector, mut now) = settled(50);
    let regime = refusing(AnomalySensitivity::High);
    for i in 0..3 * CALLERS {
        detector.judge_call(&format!("caller-{i}"), Some(HOME), regime, now);
        now += MINUTE;
        assert_eq!(detector.judge_call("ci", Some(HOME), regime, now), None);
        assert!(detector.callers.len() <= CALLERS);
    }
    assert!(detector.judge_call("ci", Some(ABROAD), regime, now).is_some(), "it was not forgotten");
    let size = size_of::<History>() + size_of::<String>();
    assert!(size <= 256, "{size} bytes for each caller");
}

/// One thing that a caller does.
#[derive(Clone, Debug)]
struct Step {
    pause: Duration,
    caller: u8,
    network: u8,
    class: Class,
    refused: bool,
    times: u16,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class =
        prop_oneof![Just(Class::Read), Just(Class::Sensitive), Just(Class::Write), Just(Class::Destructive)];
    let step = (0_u64..200_000, 0_u8..40, 0_u8..12, class, any::<bool>(), 1_u16..200);
    let step = step.prop_map(|(pause, caller, network, class, refused, times)| Step {
        pause: Duration::from_millis(pause),
        caller,
        network,
        class,
        refused,
        times,
    });
    prop::collection::vec(step, 1..120)
}

/// Does all of it, and gives what was found and how many callers are remembered at most.
fn run(steps: &[Step], regime: Regime, start: Duration) -> (Vec<Option<Anomaly>>, usize) {
    let mut detector = Detector { room: 16, ..Detector::default() };
    let (mut now, mut found, mut most) = (start, Vec::new(), 0);
    for step in steps {
        now += step.pause;
        let caller = step.caller.to_string();
        for _ in 0..step.times {
            found.push(detector.judge_call(&caller, Some(Network::V4([10, 0, step.network])), regime, now));
            if step.refused {
                detector.note_refusal(&caller, now);
            } else {
                found.push(detector.judge_class(&caller, step.class, regime, now));
            }
        }
        most = most.max(detector.callers.len());
    }
    (found, most)
}

fn sensitivity() -> impl Strategy<Value = AnomalySensitivity> {
    prop::sample::select(ALL.to_vec())
}

proptest! {
    #[test]
    fn the_same_calls_get_the_same_verdicts_in_bounded_room(
        steps in steps(), sensitivity in sensitivity(), refuses in any::<bool>()
    ) {
        let regime = Regime { refuses, ..watching(sensitivity) };
        let (found, most) = run(&steps, regime, Duration::ZERO);
        prop_assert!(most <= 16);
        prop_assert_eq!((found, most), run(&steps, regime, Duration::ZERO));
    }

    #[test]
    fn no_order_of_times_makes_it_panic(
        times in prop::collection::vec(any::<u64>(), 1..50), refuses in any::<bool>()
    ) {
        let (mut detector, _) = detector();
        let regime = Regime { refuses, ..watching(AnomalySensitivity::High) };
        for now in times.into_iter().map(Duration::from_secs) {
            detector.judge_call("ci", Some(HOME), regime, now);
            detector.judge_class("ci", Class::Destructive, regime, now);
            detector.note_refusal("ci", now);
        }
    }
}

proptest! {
    // Each case is twenty thousand calls.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_steady_client_is_never_anomalous(
        sensitivity in sensitivity(),
        exponent in 0.0_f64..6.0,
        begins in 0_u64..60_000,
        dangerous in any::<bool>(),
    ) {
        // From a thousand calls each second to one in a quarter of an hour.
        let pause = Duration::from_secs_f64(0.001 * 10_f64.powf(exponent));
        let (mut detector, start) = detector();
        let mut now = start + Duration::from_millis(begins);
        let regime = refusing(sensitivity);
        let class = if dangerous { Class::Destructive } else { Class::Read };
        for _ in 0..20_000 {
            prop_assert_eq!(detector.judge_call("ci", Some(HOME), regime, now), None);
            prop_assert_eq!(detector.judge_class("ci", class, regime, now), None);
            now += pause;
        }
    }
}
