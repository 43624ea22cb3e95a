import type { Proxy } from '../proxy/port.ts';

/**
 * Placement: which proxy serves a recovery, at which of its addresses, to which host. All that is
 * known goes in as facts; what comes out is every pair of proxy and host, ranked, each with its
 * reasons. The deciding itself is a pure function (scoring.ts).
 */
export interface ProxyFacts {
  readonly name: string;
  readonly state: 'connected' | 'disconnected' | 'draining';
  /** Why it cannot be given work although it answers, such as another version. */
  readonly problem: string | null;
  /** As hosts may reach it, the preferred first. */
  readonly addresses: readonly string[];
  /** Addresses of its machine with their prefixes: `10.77.0.1/24`. */
  readonly networks: readonly string[];
  readonly devices: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  /** Names of hypervisors, clusters and hosts: it serves these alone, or all but those. */
  readonly onlyFor: readonly string[];
  readonly neverFor: readonly string[];
  /** 0: idle; 1 and more: as busy as it can be. */
  readonly loadShare: number;
  /** Free share of where its clones grow. */
  readonly freeShare: number;
  /** It serves clones of this machine's savesets already: their blocks are in its cache. */
  readonly isWarm: boolean;
}

export interface HostFacts {
  readonly id: string;
  readonly name: string;
  readonly state: 'connected' | 'disconnected' | 'maintenance';
  readonly addresses: readonly string[];
  readonly cluster: { readonly id: string; readonly name: string } | null;
  readonly hypervisor: { readonly id: string; readonly name: string } | null;
  /** NFS datastores that it has mounted, and how many it takes; null: no bound is known. */
  readonly nfsSlots: { readonly used: number; readonly max: number } | null;
  /** Recoveries that run there already. */
  readonly recoveries: number;
}

/** How mounting from that address went for that host the last time. */
export interface PastMount {
  readonly proxy: string;
  readonly address: string;
  readonly hypervisorId: string;
  readonly hostId: string;
  readonly clusterId: string | null;
  readonly okMs: number | null;
  readonly failedMs: number | null;
  readonly error: string | null;
}

/** What a proxy found when it tried to reach an address of a host just now. */
export interface Reach {
  readonly proxy: string;
  readonly address: string;
  /** `silent`: a firewall may swallow what was tried; it proves nothing. */
  readonly answer: 'answers' | 'silent' | 'no route';
}

export interface PlacementQuestion {
  /** Where the saveset lies. */
  readonly device: { readonly id: string; readonly name: string };
  /** Clones of these savesets make a proxy's cache warm. */
  readonly machineId: string;
  readonly hosts: readonly HostFacts[];
  /** Proxy's name and host's id, when asked for: nothing else will do. */
  readonly wanted: { readonly proxy: string | null; readonly hostId: string | null };
  /** Names of proxies and hosts that will not do. */
  readonly without: readonly string[];
  /** Labels that a proxy should carry. */
  readonly prefer: Readonly<Record<string, string>>;
  /** The production datastore that a host must see; null: none is named or it is not known. */
  readonly datastore: { readonly name: string; readonly hostIds: readonly string[] } | null;
  /** The host mounts an export: false for a full restore, which is written in place. */
  readonly mounts: boolean;
}

/** The question with what is known of the proxies. */
export interface PlacementFacts extends PlacementQuestion {
  readonly proxies: readonly ProxyFacts[];
  readonly pastMounts: readonly PastMount[];
  readonly reach: readonly Reach[];
}

export interface Candidate {
  readonly proxy: string;
  /** The proxy's address for this host. */
  readonly address: string;
  readonly hostId: string;
  readonly host: string;
  readonly cluster: string | null;
  readonly datastore: string | null;
  readonly score: number;
  /** Why it will not do; empty: it will. */
  readonly refusals: readonly Refusal[];
  readonly reasons: readonly { readonly text: string; readonly points: number }[];
}

export interface Refusal {
  /** Whose fault it is. */
  readonly of: 'proxy' | 'host' | 'request';
  readonly text: string;
}

/** What recoveries ask of placement; src/placement/service.ts is it. */
export interface Placement {
  /** Every pair, those that will do first, the best at the top. Changes nothing. */
  rank(question: PlacementQuestion): Promise<readonly Candidate[]>;
  /** Remembers how a mount went, for the next ranking. */
  mounted(past: Omit<PastMount, 'okMs' | 'failedMs'>): Promise<void>;
}

/** A proxy as work is given to it. */
export interface ReachableProxy {
  readonly name: string;
  /** As hypervisor hosts reach it. */
  readonly address: string;
  /** All that they may reach it at, when there are several. */
  readonly addresses?: readonly string[];
  /** It has not been heard of for a while: what can do without it, does not ask it. */
  readonly isAway: boolean;
  readonly calls: Proxy;
}
