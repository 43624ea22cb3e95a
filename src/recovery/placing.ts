import { RouseError } from '../errors.ts';
import type { Host, Inventory } from '../hypervisors/port.ts';
import { pick } from '../lib/text.ts';
import type { Candidate, HostFacts, PlacementQuestion } from '../placement/port.ts';
import { hostOfTarget } from './attaching.ts';
import { isMounted, type RecoveryInput } from './plan.ts';
import type { RecoveryWorld } from './world.ts';

/**
 * Steps 2 and 3 as one question: which proxy, for which host. Every pair is ranked by placement
 * (src/placement); here is what a recovery asks it, and what is said when no pair will do.
 */
export interface Placed {
  /** Those that will do first, the best at the top. */
  readonly candidates: readonly Candidate[];
  /** undefined: the best of them will do. */
  readonly refusal: RouseError | undefined;
}

/** Changes nothing. Throws `not-found` for a host that is not there. */
export async function placeRecovery(
  world: RecoveryWorld,
  input: RecoveryInput,
  inventory: Inventory | undefined,
): Promise<Placed> {
  const device = await world.device(input.savesetId);
  const hosts = inventory === undefined ? [clientsAsHost(input)] : inventory.hosts;
  const question: PlacementQuestion = {
    device: { id: device.id, name: device.name },
    machineId: input.machine.id,
    hosts:
      inventory === undefined ? (hosts as HostFacts[]) : await hostFacts(world, input, inventory),
    wanted: { proxy: input.proxy ?? null, hostId: wantedHostId(input, inventory) },
    without: input.without ?? [],
    prefer: input.prefer ?? {},
    datastore: wantedDatastore(input, inventory),
    mounts: isMounted(input),
  };
  const candidates = await world.placement.rank(question);
  const will = candidates[0]?.refusals.length === 0;
  return { candidates, refusal: will ? undefined : refusalOf(input, candidates) };
}

/** Its best candidate. Throws `proxy-unreachable` or `host-unreachable`, with all reasons. */
export function chosenOf({ candidates, refusal }: Placed): Candidate {
  const [first] = candidates;
  if (refusal !== undefined || first === undefined) {
    throw refusal ?? new RouseError('host-unreachable', 'no host is known');
  }
  return first;
}

/** Publish has no host: whoever mounts it stands for one. */
function clientsAsHost(input: RecoveryInput): HostFacts {
  return {
    id: 'clients',
    name: 'clients',
    state: 'connected',
    addresses: input.clients.map((client) => client.split('/')[0] ?? ''),
    cluster: null,
    hypervisor: null,
    nfsSlots: null,
    recoveries: 0,
  };
}

async function hostFacts(
  world: RecoveryWorld,
  input: RecoveryInput,
  { hosts, clusters }: Inventory,
): Promise<readonly HostFacts[]> {
  const active = await world.recoveries.list({ active: true });
  const here = active.filter(({ hypervisorId }) => hypervisorId === input.hypervisorId);
  const id = input.hypervisorId ?? '';
  const hypervisor = { id, name: await world.hypervisorName(id) };
  return hosts.map((host) => {
    const cluster = clusters.find(
      (one) => one.id === host.clusterId || one.hostIds.includes(host.id),
    );
    return {
      id: host.id,
      name: host.name,
      state: host.state,
      addresses: host.addresses,
      cluster: cluster === undefined ? null : { id: cluster.id, name: cluster.name },
      hypervisor,
      nfsSlots: host.nfsSlots ?? null,
      recoveries: here.filter((row) => row.host === host.name && row.id !== input.recoveryId)
        .length,
    };
  });
}

/** For file-level recovery it is the one that the target machine runs on. */
export function wantedHostId(
  input: RecoveryInput,
  inventory: Inventory | undefined,
): string | null {
  if (inventory === undefined) return null;
  if (input.target) return hostOfTarget(inventory, input.target).host.id;
  return input.host === null ? null : pick('host', input.host, inventory.hosts).id;
}

/** One that is not there is refused where it is needed, with those that there are. */
function wantedDatastore(
  input: RecoveryInput,
  inventory: Inventory | undefined,
): PlacementQuestion['datastore'] {
  const wanted = input.mode === 'new' ? input.datastore : input.relocateTo;
  const found = inventory?.datastores.filter(({ id, name }) => id === wanted || name === wanted);
  const [first] = found ?? [];
  if (first === undefined) return null;
  return { name: first.name, hostIds: (found ?? []).flatMap(({ hostIds }) => hostIds) };
}

/** The host of step 2 as it is now. Throws `host-unreachable` when it went away since. */
export function hostNow(inventory: Inventory, hostId: string, name: string): Host {
  const host = inventory.hosts.find(({ id }) => id === hostId);
  if (host?.state === 'connected') return host;
  const what = host === undefined ? 'is no longer there' : `is ${host.state}`;
  throw new RouseError('host-unreachable', `host ${name} ${what}`, {
    advice: 'Bring it back, or recover to another one: rouse recover … --dry-run',
  });
}

const shownMax = 8;

function refusalOf(input: RecoveryInput, candidates: readonly Candidate[]): RouseError {
  const asked = candidates.filter((one) => one.refusals.every(({ of }) => of !== 'request'));
  const others = candidates.filter((one) => one.refusals.every(({ of }) => of === 'request'));
  const isHostsFault =
    asked.length > 0 && asked.every((one) => one.refusals.some(({ of }) => of === 'host'));
  const wanted = [
    ...(input.host === null ? [] : [`host ${input.host}`]),
    ...(input.proxy ? [`proxy ${input.proxy}`] : []),
  ].join(' with ');
  const what =
    wanted === '' ? `nothing can take ${input.name}` : `${wanted} cannot take ${input.name}`;
  const pairs = asked.length > 0 ? asked : candidates;
  const reasons = pairs.slice(0, shownMax).map(nameWithReasons).join('; ');
  const advice =
    others.length > 0
      ? `These would do: ${others.slice(0, shownMax).map(nameOf).join(', ')}.`
      : 'See every candidate with its reasons: rouse recover … --dry-run';
  const code = isHostsFault ? 'host-unreachable' : 'proxy-unreachable';
  return new RouseError(code, `${what}: ${reasons || 'no host or no proxy is known'}`, {
    advice,
    details: { candidates: candidates.map(candidateView) },
  });
}

function nameOf({ host, proxy }: Candidate): string {
  return `${host} by ${proxy}`;
}

function nameWithReasons(candidate: Candidate): string {
  return `${nameOf(candidate)}: ${candidate.refusals.map(({ text }) => text).join(', ')}`;
}

/** As people and programs read it; `chosen` is the caller's to say. */
export function candidateView(candidate: Candidate, index: number) {
  const { proxy, address, host, cluster, datastore, score, refusals, reasons } = candidate;
  return {
    proxy,
    address,
    host,
    cluster,
    datastore,
    score,
    chosen: index === 0 && refusals.length === 0,
    refusals: refusals.map(({ text }) => text),
    reasons: reasons.map(({ text, points }) => `${text} (${points > 0 ? '+' : ''}${points})`),
  };
}
