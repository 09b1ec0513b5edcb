//! The next job on the same slot, of the same image: of what the one before it left wherever
//! it could, nothing is there.

use longshore_proto::v1 as pb;
use longshore_proto::v1::observed_runner::Phase;

use crate::on::On;
use crate::profiles::{built, under};
use crate::support::{self, Bench};

/// Everywhere that somebody thought of leaving something.
const PLACES: &str = "/ /bin /etc /run /tmp /var/tmp /dev /dev/shm /dev/mqueue /open /data /opt /opt/longshore \
    /home/runner /home/runner/bin /home/runner/externals /home/runner/_work /home/runner/_work/_tmp";

/// Leaves the mark in files, a process of its own session, a socket and a listening port, and
/// then looks for it.
fn leave(mark: &str) -> String {
    format!(
        "for place in {PLACES}; do echo {mark} >$place/{mark} && echo left in $place; done 2>/dev/null
         setsid sh -c 'while :; do sleep 86399; done # {mark}' &
         nc -l -p 7070 -e echo {mark} &
         t=0; until search | grep -q process && search | grep -q port; do t=$((t+1)); [ $t -lt 300 ] || break; sleep 0.1; done
         search"
    )
}

/// Every line that it prints is something of the mark's.
fn search(mark: &str) -> String {
    // Not the searching programs themselves.
    let (first, rest) = mark.split_at(1);
    format!(
        "search() {{ {{
         find / -path /proc -prune -o -path /sys -prune -o -name '{mark}' -print | sed 's/^/file /'
         grep -l '[{first}]{rest}' /proc/[0-9]*/cmdline | sed 's/^/process /'
         grep '[{first}]{rest}' /etc/hosts /etc/resolv.conf /proc/self/environ /proc/mounts /proc/net/unix | sed 's/^/text /'
         grep -q ':1B9E ' /proc/net/tcp /proc/net/tcp6 && echo port
         }} 2>/dev/null; }}"
    )
}

/// What a job said that ran this, and the gateway of its slot.
async fn said(bench: &mut Bench, profile: &str, image: &str, job: &str) -> (String, String) {
    let runner = bench.name(profile);
    let wish = pb::LogSubscription {
        runner: runner.clone(),
        offset: 0,
    };
    let wanted = [(runner.as_str(), under(profile, image))];
    bench.intend(&wanted, &[wish]).await;
    let ready = bench.phase(&runner, Phase::Ready).await;
    let gateway = bench.gateway(&ready.container_id);
    bench.register(&runner, job, "x").await;
    let exited = bench.phase(&runner, Phase::Exited).await;
    assert_eq!(exited.exit.and_then(|exit| exit.code), Some(0));
    let output = bench.output(&runner).await;
    bench.intend(&[], &[]).await;
    bench.gone(&runner).await;
    let (_, told) = output.split_once("begin\n").expect("it began");
    (told.to_owned(), gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_a_job_leaves_anywhere_the_next_one_sees_nothing() {
    let lines =
        "RUN mkdir -p /data /open /var/tmp /run && chmod 1777 /data /open /var/tmp\nVOLUME /data";
    let image = built(&support::image(), lines);
    let mut bench = Bench::start(&On::Host, "next").await;
    for profile in ["strict", "standard", "containers"] {
        let mark = format!("left-{}", support::random());
        let search = search(&mark);
        let job = format!("{search}\necho begin\n{}\nexit 0", leave(&mark));
        let (first, slot) = said(&mut bench, profile, &image.0, &job).await;
        // The control: it is there to be found, and the search finds it.
        let mut places = vec![
            "/tmp",
            "/dev/shm",
            "/data",
            "/home/runner",
            "/home/runner/_work",
        ];
        if profile != "strict" {
            places.extend(["/open", "/var/tmp"]);
        }
        for place in places {
            let found = first.contains(&format!("file {place}/{mark}\n"));
            assert!(found, "{profile}: {place}:\n{first}");
        }
        for kind in ["process ", "port"] {
            let found = first.lines().any(|line| line.starts_with(kind));
            assert!(found, "{profile}: {kind}:\n{first}");
        }
        let (next, again) = said(
            &mut bench,
            profile,
            &image.0,
            &format!("{search}\necho begin\nsearch\nexit 0"),
        )
        .await;
        assert_eq!(again, slot, "the same slot");
        assert_eq!(next, "", "{profile}");
    }
    assert_eq!(bench.leftovers(), "");
    bench.finish().await;
}
