//! What there is in the model: small enough to be copied, compared and kept by the million.
//!
//! Pods are bits, numbered by age. A number is used again once nobody remembers its pod, so that states which differ
//! only in how often a pod was replaced are one state.

/// A set of pods.
pub(crate) type Pods = u8;

/// What one operator process has decided and is carrying out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Doing {
    #[default]
    Nothing,
    /// Deployment and ReplicaSet are read, pods and workers are not.
    Reading,
    Stamp,
    Resize,
    Mark,
    Open,
    Drain,
    ConfirmDelete,
    Delete,
    ConfirmLower,
    Lower,
    ConfirmSettle,
    Settle,
    /// Only in a control: the pods turn NotReady, then the size is lowered.
    Unready,
}

/// One operator process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) doing: Doing,
    pub(crate) pods: Pods,
    /// Pods written since they were read: their resourceVersion is another.
    pub(crate) touched: Pods,
    /// Whether the Deployment was written since it was read.
    pub(crate) stale: bool,
    pub(crate) to: u8,
    /// Admitted pods when it decided.
    pub(crate) survivors: Pods,
    /// What it read first, while it is [`Doing::Reading`].
    pub(crate) read: Numbers,
}

/// The numbers of Deployment and ReplicaSet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Numbers {
    pub(crate) size: u8,
    pub(crate) observed: bool,
    pub(crate) live: u8,
    pub(crate) set_size: u8,
    pub(crate) set_observed: bool,
    pub(crate) set_live: u8,
    pub(crate) set_ready: u8,
}

/// [`umbel_plan::drain::Memory`], small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    /// Pods deleted by name, and whether Redis has kept its data since.
    pub(crate) replacing: Option<(u8, bool)>,
    pub(crate) lowering: Option<(u8, Pods)>,
    pub(crate) unsettled: Since,
}

/// How long something lasts already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Since {
    #[default]
    Never,
    Now,
    /// Longer than a step waits.
    Long,
}

/// Whose term Redis has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    #[default]
    Ours,
    /// The predecessor's: the leader has not come yet.
    Predecessors,
    /// Nobody's: Redis lost it.
    Lost,
}

/// What the pod watch of the ReplicaSet controller will deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    #[default]
    None,
    Added(u8),
    Ready(u8),
    Unready(u8),
    Gone(u8),
}

/// What the ReplicaSet controller found in its cache, to be written as the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Status {
    pub(crate) live: u8,
    pub(crate) ready: u8,
    /// Whether it acted on the present size.
    pub(crate) fresh: bool,
}

/// How often something may still happen that nobody wishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Changes of demand.
    pub(crate) demands: u8,
    /// Operators that die, or that are stopped and come back too late.
    pub(crate) crashes: u8,
    /// Writes of the operator that outlive its patience.
    pub(crate) delays: u8,
    /// Pods that are lost with their node or deleted by somebody else.
    pub(crate) losses: u8,
    /// Losses of all that Redis holds.
    pub(crate) wipes: u8,
    /// Workers that see no leader and open their own gate.
    pub(crate) selves: u8,
    /// Quotas that refuse new pods for a while.
    pub(crate) quotas: u8,
}

pub(crate) const EVENTS: usize = 10;
pub(crate) const SIZES: usize = 3;

#[allow(clippy::struct_excessive_bools, reason = "facts that are independent of each other")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    // Pods, as the API server has them; ending ones are not there any more.
    pub(crate) alive: Pods,
    pub(crate) running: Pods,
    pub(crate) ready: Pods,
    pub(crate) marked: Pods,
    // Redis. A running pod that is neither open nor closed is new.
    pub(crate) open: Pods,
    pub(crate) closed: Pods,
    pub(crate) held: Pods,
    pub(crate) term: Term,
    /// The step key: nobody admits itself.
    pub(crate) step: bool,
    // Deployment and ReplicaSet.
    pub(crate) numbers: Numbers,
    /// The Deployment carries the leader's term.
    pub(crate) stamped: bool,
    // The ReplicaSet controller: its cache, what is on its way there, what it waits for, and what it will write.
    pub(crate) cached: Pods,
    pub(crate) cached_ready: Pods,
    pub(crate) cached_size: u8,
    pub(crate) events: [Event; EVENTS],
    pub(crate) sizes: [u8; SIZES],
    pub(crate) sizes_left: u8,
    pub(crate) awaits_new: u8,
    pub(crate) awaits_gone: Pods,
    pub(crate) status: Option<Status>,
    /// New pods are refused.
    pub(crate) quota: bool,
    // The operator, and a predecessor (or a late request) that does not know that it is one.
    pub(crate) memory: Memory,
    pub(crate) leader: Process,
    pub(crate) ghost: Process,
    /// The ghost is a request of the leader itself, which has given it up.
    pub(crate) late: bool,
    pub(crate) desired: u8,
    pub(crate) budget: Budget,
}

pub(crate) fn count(pods: Pods) -> u8 {
    u8::try_from(pods.count_ones()).expect("at most eight")
}

pub(crate) fn each(pods: Pods) -> impl Iterator<Item = u8> {
    (0..8).filter(move |pod| pods & (1 << pod) != 0)
}

fn squeeze(pods: &mut Pods, gap: u8) {
    let low = (1_u8 << gap) - 1;
    *pods = (*pods & low) | ((*pods >> 1) & !low);
}

impl State {
    /// A pool at rest.
    pub(crate) fn at_rest(size: u8, budget: Budget) -> State {
        let all = (1_u8 << size) - 1;
        let numbers = Numbers {
            size,
            observed: true,
            live: size,
            set_size: size,
            set_observed: true,
            set_live: size,
            set_ready: size,
        };
        State {
            alive: all,
            running: all,
            ready: all,
            marked: all,
            open: all,
            closed: 0,
            held: 0,
            term: Term::Ours,
            step: false,
            numbers,
            stamped: true,
            cached: all,
            cached_ready: all,
            cached_size: size,
            events: [Event::None; EVENTS],
            sizes: [0; SIZES],
            sizes_left: 0,
            awaits_new: 0,
            awaits_gone: 0,
            status: None,
            quota: false,
            memory: Memory::default(),
            leader: Process::default(),
            ghost: Process::default(),
            late: false,
            desired: size,
            budget,
        }
    }

    /// The same, but the youngest pod is a replacement that has started and that nobody admitted.
    pub(crate) fn with_replacement(mut self) -> State {
        let others = self.alive >> 1;
        for pods in [
            &mut self.ready,
            &mut self.marked,
            &mut self.open,
            &mut self.cached_ready,
        ] {
            *pods = others;
        }
        self.numbers.set_ready -= 1;
        self
    }

    /// What everybody works for: the wanted size, and every pod at work.
    pub(crate) fn is_goal(&self) -> bool {
        self.numbers.size == self.desired
            && count(self.alive) == self.desired
            && self.alive & self.marked & self.open & self.ready == self.alive
            && self.memory.lowering.is_none()
    }

    pub(crate) fn tell(&mut self, event: Event) {
        let free = self.events.iter_mut().find(|slot| **slot == Event::None);
        *free.expect("the bound on events is large enough") = event;
    }

    pub(crate) fn next_event(&mut self) -> Event {
        let first = self.events[0];
        self.events.rotate_left(1);
        self.events[EVENTS - 1] = Event::None;
        first
    }

    /// Makes a pod, unseen by everybody.
    pub(crate) fn make(&mut self) {
        let pod = u8::try_from(8 - self.remembered().leading_zeros()).expect("at most eight");
        assert!(pod < 8, "the bound on pods is large enough");
        self.alive |= 1 << pod;
        self.begin_anew();
        self.tell(Event::Added(pod));
    }

    /// A pod ends.
    pub(crate) fn remove(&mut self, pod: u8) {
        self.begin_anew();
        let left = !(1 << pod);
        let lists = [
            &mut self.alive,
            &mut self.running,
            &mut self.ready,
            &mut self.marked,
            &mut self.open,
        ];
        for pods in lists.into_iter().chain([&mut self.closed, &mut self.held]) {
            *pods &= left;
        }
        for process in [&mut self.leader, &mut self.ghost] {
            process.pods &= left;
            process.touched &= left;
            process.survivors &= left;
        }
        if let Some((_, survivors)) = &mut self.memory.lowering {
            *survivors &= left;
        }
        self.tell(Event::Gone(pod));
    }

    /// A pod came or went: the operator gives the controllers another minute to settle.
    fn begin_anew(&mut self) {
        if self.memory.unsettled == Since::Long {
            self.memory.unsettled = Since::Now;
        }
    }

    /// The Deployment got another resourceVersion.
    pub(crate) fn touch_deployment(&mut self) {
        self.leader.stale = true;
        self.ghost.stale = true;
    }

    /// Pods got another resourceVersion.
    pub(crate) fn touch(&mut self, pods: Pods) {
        self.leader.touched |= pods;
        self.ghost.touched |= pods;
    }

    /// Sets the Deployment's size.
    pub(crate) fn resize(&mut self, to: u8) {
        if to != self.numbers.size {
            self.numbers.size = to;
            self.numbers.observed = false;
            self.touch_deployment();
        }
    }

    fn remembered(&self) -> Pods {
        let mut pods = self.alive | self.cached | self.awaits_gone;
        for event in self.events {
            pods |= match event {
                Event::None => break,
                Event::Added(pod) | Event::Ready(pod) | Event::Unready(pod) | Event::Gone(pod) => 1 << pod,
            };
        }
        pods
    }

    /// The same state in its one form.
    pub(crate) fn normal(mut self) -> State {
        for process in [&mut self.leader, &mut self.ghost] {
            let concerns_pods = match process.doing {
                Doing::Mark | Doing::Open | Doing::Drain | Doing::ConfirmDelete | Doing::Delete => true,
                Doing::Nothing
                | Doing::Reading
                | Doing::Stamp
                | Doing::Resize
                | Doing::ConfirmLower
                | Doing::Lower
                | Doing::ConfirmSettle
                | Doing::Settle
                | Doing::Unready => false,
            };
            if process.doing == Doing::Nothing || (concerns_pods && process.pods == 0) {
                *process = Process::default();
            }
            process.touched &= process.pods;
        }
        if self.ghost.doing == Doing::Nothing {
            self.late = false;
        }
        loop {
            let remembered = self.remembered();
            let gap = u8::try_from(remembered.trailing_ones()).expect("at most eight");
            if gap >= 8 || remembered >> gap == 0 {
                return self;
            }
            self.close(gap);
        }
    }

    /// Gives the number `gap`, which nobody uses, to the next older pods.
    fn close(&mut self, gap: u8) {
        let own = [
            &mut self.alive,
            &mut self.running,
            &mut self.ready,
            &mut self.marked,
            &mut self.open,
        ];
        let seen = [
            &mut self.closed,
            &mut self.held,
            &mut self.cached,
            &mut self.cached_ready,
            &mut self.awaits_gone,
        ];
        for pods in own.into_iter().chain(seen) {
            squeeze(pods, gap);
        }
        for process in [&mut self.leader, &mut self.ghost] {
            squeeze(&mut process.pods, gap);
            squeeze(&mut process.touched, gap);
            squeeze(&mut process.survivors, gap);
        }
        if let Some((_, survivors)) = &mut self.memory.lowering {
            squeeze(survivors, gap);
        }
        for event in &mut self.events {
            match event {
                Event::None => break,
                Event::Added(pod) | Event::Ready(pod) | Event::Unready(pod) | Event::Gone(pod) => {
                    *pod -= u8::from(*pod > gap);
                }
            }
        }
    }
}
