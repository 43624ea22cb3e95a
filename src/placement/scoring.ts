import { familyOf, isLoopback, isSameAddress, isWithin } from '../lib/addresses.ts';
import { points } from './points.ts';
import type { Candidate, HostFacts, PlacementFacts, ProxyFacts, Reach, Refusal } from './port.ts';

/**
 * The choice of proxy and host as a pure function. Points are absolute, never relative to other
 * candidates: one more candidate changes nobody's score, so a worse one never changes who wins.
 * Refusals are what is certain; everything that is merely likely gives or takes points.
 */
export function rankCandidates(facts: PlacementFacts): readonly Candidate[] {
  const all = facts.proxies.flatMap((proxy) =>
    facts.hosts.map((host) => candidateOf(facts, proxy, host)),
  );
  return all.sort(better);
}

/** The one to take; undefined: none will do. */
export function winnerOf(ranked: readonly Candidate[]): Candidate | undefined {
  const [first] = ranked;
  return first?.refusals.length === 0 ? first : undefined;
}

/** Ties are broken by name, so that the same facts give the same answer in any order. */
function better(a: Candidate, b: Candidate): number {
  return (
    Math.sign(a.refusals.length) - Math.sign(b.refusals.length) ||
    b.score - a.score ||
    compare(a.host, b.host) ||
    compare(a.proxy, b.proxy) ||
    compare(a.hostId, b.hostId)
  );
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

type Reason = Candidate['reasons'][number];

function candidateOf(facts: PlacementFacts, proxy: ProxyFacts, host: HostFacts): Candidate {
  const way = bestWay(facts, proxy, host);
  const reasons = [
    ...way.reasons,
    ...proxyReasons(facts, proxy, host),
    ...hostReasons(facts, host),
  ].filter((reason) => reason.points !== 0);
  return {
    proxy: proxy.name,
    address: way.address,
    hostId: host.id,
    host: host.name,
    cluster: host.cluster?.name ?? null,
    datastore: facts.datastore?.name ?? null,
    score: reasons.reduce((sum, reason) => sum + reason.points, 0),
    refusals: [
      ...requestRefusals(facts, proxy, host),
      ...proxyRefusals(facts, proxy, host),
      ...hostRefusals(facts, host),
      ...way.refusals,
    ],
    reasons,
  };
}

function requestRefusals(
  { wanted, without }: PlacementFacts,
  proxy: ProxyFacts,
  host: HostFacts,
): Refusal[] {
  const refusals: string[] = [];
  if (wanted.proxy !== null && wanted.proxy !== proxy.name) {
    refusals.push(`proxy ${wanted.proxy} was asked for`);
  }
  if (wanted.hostId !== null && wanted.hostId !== host.id) {
    refusals.push('another host was asked for');
  }
  if (without.includes(proxy.name)) refusals.push(`proxy ${proxy.name} was excluded`);
  if (without.includes(host.name)) refusals.push(`host ${host.name} was excluded`);
  return refusals.map((text) => ({ of: 'request', text }));
}

function proxyRefusals(facts: PlacementFacts, proxy: ProxyFacts, host: HostFacts): Refusal[] {
  const { name, state, problem, devices, onlyFor, neverFor } = proxy;
  const refusals: string[] = [];
  if (state === 'disconnected') refusals.push(`proxy ${name} does not answer`);
  if (state === 'draining') refusals.push(`proxy ${name} is draining`);
  if (problem !== null) refusals.push(`proxy ${name}: ${problem}`);
  if (!devices.includes(facts.device.id)) {
    refusals.push(`proxy ${name} has no access to device ${facts.device.name}`);
  }
  const names = placesOf(host);
  if (onlyFor.length > 0 && !onlyFor.some((place) => names.includes(place))) {
    refusals.push(`proxy ${name} serves ${onlyFor.join(', ')} only`);
  }
  const never = neverFor.find((place) => names.includes(place));
  if (never !== undefined) refusals.push(`proxy ${name} never serves ${never}`);
  return refusals.map((text) => ({ of: 'proxy', text }));
}

/** The host's own name, and those of its cluster and its manager. */
function placesOf(host: HostFacts): readonly string[] {
  const names = [host.name, host.cluster?.name, host.hypervisor?.name];
  return names.filter((name) => name !== undefined);
}

function hostRefusals(facts: PlacementFacts, host: HostFacts): Refusal[] {
  const refusals: string[] = [];
  if (host.state === 'maintenance') refusals.push('the host is in maintenance');
  if (host.state === 'disconnected') refusals.push('the host is disconnected');
  const { nfsSlots: slots } = host;
  if (facts.mounts && slots !== null && slots.used >= slots.max) {
    refusals.push(`the host has no NFS datastore free: ${slots.used} of ${slots.max} are used`);
  }
  const { datastore } = facts;
  if (datastore !== null && !datastore.hostIds.includes(host.id)) {
    refusals.push(`the host does not see datastore ${datastore.name}`);
  }
  if (facts.mounts && host.addresses.length === 0) refusals.push('the host has no address');
  return refusals.map((text) => ({ of: 'host', text }));
}

interface Way {
  readonly address: string;
  readonly reasons: readonly Reason[];
  readonly refusals: readonly Refusal[];
}

/** The proxy's address that speaks most for this host; the first of equals. */
function bestWay(facts: PlacementFacts, proxy: ProxyFacts, host: HostFacts): Way {
  const refuse = (text: string): Refusal[] => (facts.mounts ? [{ of: 'proxy', text }] : []);
  const ways = proxy.addresses
    .filter((address) => host.addresses.some((other) => familyOf(other) === familyOf(address)))
    .map((address) => ({ address, reasons: wayReasons(facts, proxy, host, address) }))
    .map((way) => ({ ...way, points: way.reasons.reduce((sum, one) => sum + one.points, 0) }));
  const probed = reachOf(facts, proxy, host);
  const refusals =
    probed.length > 0 && probed.every(({ answer }) => answer === 'no route')
      ? refuse(`proxy ${proxy.name} has no route to any address of the host`)
      : [];
  let best = ways[0];
  for (const way of ways) if (best === undefined || way.points > best.points) best = way;
  if (best !== undefined) return { ...best, refusals };
  const text =
    proxy.addresses.length === 0
      ? `proxy ${proxy.name} has said no address`
      : `proxy ${proxy.name} and the host have no address family in common`;
  return { address: proxy.addresses[0] ?? '', reasons: [], refusals: [...refuse(text)] };
}

function wayReasons(
  facts: PlacementFacts,
  proxy: ProxyFacts,
  host: HostFacts,
  address: string,
): Reason[] {
  const reasons: Reason[] = [networkReason(proxy, host, address)];
  const answered = reachOf(facts, proxy, host).find(
    (reach) => reach.answer === 'answers' && familyOf(reach.address) === familyOf(address),
  );
  if (answered !== undefined) {
    reasons.push({ text: `the host answers at ${answered.address}`, points: points.probeAnswers });
  }
  return [...reasons, ...mountReasons(facts, proxy, host, address)];
}

function reachOf(facts: PlacementFacts, proxy: ProxyFacts, host: HostFacts): readonly Reach[] {
  return facts.reach.filter(
    (reach) => reach.proxy === proxy.name && host.addresses.includes(reach.address),
  );
}

function networkReason(proxy: ProxyFacts, host: HostFacts, address: string): Reason {
  if (isLoopback(address)) {
    return host.addresses.some(isLoopback)
      ? { text: 'on the same machine', points: points.sameMachine }
      : {
          text: `${address} is reached from its own machine alone`,
          points: points.loopbackElsewhere,
        };
  }
  if (host.addresses.some((other) => isSameAddress(other, address))) {
    return { text: 'on the same machine', points: points.sameAddress };
  }
  const network = proxy.networks.find((cidr) => isSameAddress(address, cidr.split('/')[0] ?? ''));
  const near = host.addresses.find((other) => network !== undefined && isWithin(other, network));
  if (near === undefined) {
    return { text: `reached from ${address} through routers`, points: points.routed };
  }
  return { text: `same network: ${address} and ${near}`, points: points.sameNetwork };
}

function mountReasons(
  facts: PlacementFacts,
  proxy: ProxyFacts,
  host: HostFacts,
  address: string,
): Reason[] {
  const here = facts.pastMounts.filter(
    (past) =>
      past.proxy === proxy.name &&
      past.address === address &&
      past.hypervisorId === host.hypervisor?.id,
  );
  const own = here.find(({ hostId }) => hostId === host.id);
  if (own !== undefined) {
    const failed = (own.failedMs ?? 0) > (own.okMs ?? 0);
    return failed
      ? [
          {
            text: `the host could not mount from it last time: ${own.error}`,
            points: points.mountFailed,
          },
        ]
      : [{ text: 'the host has mounted from it before', points: points.mountedBefore }];
  }
  const cluster = host.cluster?.id;
  const sibling = here.some(
    (past) => past.clusterId !== null && past.clusterId === cluster && past.okMs !== null,
  );
  return sibling
    ? [{ text: 'another host of its cluster has mounted from it', points: points.mountedInCluster }]
    : [];
}

function proxyReasons(facts: PlacementFacts, proxy: ProxyFacts, host: HostFacts): Reason[] {
  const { loadShare, freeShare, isWarm, labels } = proxy;
  const reasons: Reason[] = [];
  const idle = Math.round(points.idle * Math.max(0, 1 - loadShare));
  const load = Math.round(Math.min(1, Math.max(0, loadShare)) * 100);
  reasons.push({ text: `the proxy is ${load} % busy`, points: idle });
  if (isWarm) {
    reasons.push({ text: 'its cache is warm with this machine', points: points.warm });
  }
  if (freeShare < points.lowSpaceShare) {
    const free = Math.round(freeShare * 100);
    reasons.push({ text: `the proxy has ${free} % of its space free`, points: points.lowSpace });
  }
  for (const [key, value] of Object.entries(facts.prefer)) {
    const label = labels[key];
    if (label === undefined) continue;
    const isLiked = label === value;
    const text = `${key} is ${label}${isLiked ? '' : `, not ${value}`}`;
    reasons.push({ text, points: isLiked ? points.preferred : -points.preferred });
  }
  return [...reasons, ...placeReasons(labels, host)];
}

/** Labels that say where a proxy stands count by themselves. */
function placeReasons(labels: ProxyFacts['labels'], host: HostFacts): Reason[] {
  const places = {
    host: host.name,
    cluster: host.cluster?.name,
    hypervisor: host.hypervisor?.name,
  };
  return Object.entries(places).flatMap(([key, place]) => {
    const label = labels[key];
    if (label === undefined || place === undefined) return [];
    return label === place
      ? [{ text: `same ${key}: ${label}`, points: points.samePlace }]
      : [{ text: `it is labelled for ${key} ${label}`, points: -points.samePlace }];
  });
}

function hostReasons(facts: PlacementFacts, host: HostFacts): Reason[] {
  const reasons: Reason[] = [];
  const { nfsSlots: slots, recoveries } = host;
  if (facts.mounts && slots !== null && slots.max > 0) {
    const free = Math.max(0, slots.max - slots.used);
    const text = `${free} of ${slots.max} NFS datastores are free`;
    reasons.push({ text, points: Math.round((points.freeSlots * free) / slots.max) });
  }
  const crowd = Math.min(points.recoveriesMost, recoveries * points.recoveryEach);
  reasons.push({ text: `${recoveries} recoveries run there`, points: -crowd });
  return reasons;
}
