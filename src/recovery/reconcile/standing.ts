import type { RecoveryRow } from '../../catalog/recoveries.ts';
import { RouseError } from '../../errors.ts';
import type { Json } from '../../workflows/api.ts';
import type { CloseInput } from '../cleaning.ts';
import {
  cloneIdOf,
  datastoreNameOf,
  datastoreSpec,
  isMounted,
  type RecoveryInput,
} from '../plan.ts';
import { isProduction } from '../production.ts';
import type { Recovery } from '../schema.ts';
import { isOpening, proxyOf, submitNext } from '../world.ts';
import type { Hand, Thing } from './hand.ts';
import type { ReconcileWorld } from './reconcile.ts';
import type { Seen, SeenCase } from './seen.ts';

/** A recovery that holds something, and nothing works on it at the moment. */
export interface Standing {
  readonly row: RecoveryRow;
  readonly input: RecoveryInput;
  readonly hostId: string | null;
  readonly seen: SeenCase;
  readonly all: Seen;
}

/**
 * What should be there and is not: exports and datastores are made again, a machine that has moved
 * to production is let go of, and what cannot be mended from here is said.
 */
export async function restoreStanding(
  world: ReconcileWorld,
  hand: Hand,
  standing: Standing,
): Promise<void> {
  const { row } = standing;
  if (row.state !== 'available' && row.state !== 'parked') {
    const problem = `it is ${row.state}, and nothing works on it`;
    hand.leave(thingOf(standing), problem, `End it: rouse cancel ${row.id}`);
    return;
  }
  if (row.mode === 'new') return;
  if (await hasMoved(world, hand, standing)) return;
  if (!hasClone(hand, standing) || row.state === 'parked') return;
  if (!(await restoreExport(world, hand, standing))) return;
  if (isMounted(standing.input)) await restoreMounted(world, hand, standing);
}

function thingOf({ row, all }: Standing, kind: Thing['kind'] = 'recovery', name?: string): Thing {
  const where = all.hypervisors.get(row.hypervisorId ?? '')?.name ?? row.proxy ?? '';
  return { kind, name: name ?? row.name, where, recovery: row.id };
}

/** The machine runs from other storage: by whomever it was moved, it is production. */
async function hasMoved(world: ReconcileWorld, hand: Hand, standing: Standing): Promise<boolean> {
  const { row, input, hostId, seen } = standing;
  if (row.mode !== 'instant') return false;
  const [machine] = seen.machines;
  if (machine === undefined || seen.machines.some(({ onExport }) => onExport.length > 0)) {
    return false;
  }
  if (!(await isProduction(machine.at.driver, input, machine.id))) return false;
  const what = 'it is production now; its recovery is being cleaned up';
  return hand.mend(thingOf(standing), 'its disks have moved to other storage', what, () =>
    world.transaction(async () => {
      const patch = { state: 'cleaning' } as const;
      if (!(await world.recoveries.updateWhile(row.id, ['available', 'parked'], patch))) return;
      const close: CloseInput = { recovery: input, reason: 'relocated', hostId, keepWrites: false };
      await submitNext(world, row.id, 'close', close);
    }),
  );
}

function hasClone(hand: Hand, standing: Standing): boolean {
  const { row, seen, all } = standing;
  // A proxy that is away is reported as such.
  if (row.proxy === null || !all.proxies.has(row.proxy)) return false;
  if (seen.clones.some(({ proxy }) => proxy.name === row.proxy)) return true;
  const note = `Nothing can be served any more. End it: rouse cancel ${row.id}`;
  hand.leave(thingOf(standing), `its clone is gone from proxy ${row.proxy}`, note);
  return false;
}

async function restoreExport(
  world: ReconcileWorld,
  hand: Hand,
  standing: Standing,
): Promise<boolean> {
  const { row, input, seen, all } = standing;
  const proxy = all.proxies.get(row.proxy ?? '');
  if (proxy === undefined) return false;
  if (seen.exports.some((one) => one.proxy.name === proxy.name)) return true;
  const cloneId = cloneIdOf(input, proxy.name);
  const thing = { ...thingOf(standing, 'export', cloneId), where: proxy.name };
  const what = `exported again to ${row.clients.join(', ')}`;
  return hand.mend(thing, `recovery ${row.id} needs it, and it is gone`, what, async () => {
    await refuseEnding(world, row.id);
    await proxy.calls.createExport({ cloneId, clients: row.clients });
  });
}

async function restoreMounted(
  world: ReconcileWorld,
  hand: Hand,
  standing: Standing,
): Promise<void> {
  const { row, input, hostId, seen, all } = standing;
  const at = all.hypervisors.get(row.hypervisorId ?? '');
  // A hypervisor that does not answer is reported as such.
  if (at === undefined) return;
  if (row.mode === 'instant' && seen.machines.length === 0) {
    const note = `End it: rouse cancel ${row.id}; with --keep-writes what it wrote stays.`;
    hand.leave(thingOf(standing), 'its machine is no longer registered', note);
    return;
  }
  const name = datastoreNameOf(input);
  if (!seen.datastores.some(({ isNamed, isProven }) => isNamed && isProven)) {
    const problem = `recovery ${row.id} needs it, and it is not mounted`;
    await hand.mend(thingOf(standing, 'datastore', name), problem, 'mounted again', async () => {
      await refuseEnding(world, row.id);
      const proxy = await proxyOf(world, row.id);
      const exports = await proxy.calls.exports();
      const shared = exports.find(({ cloneId }) => cloneId === row.cloneId);
      if (shared === undefined || hostId === null) {
        throw new RouseError('wrong-state', 'its export or its host is not known yet');
      }
      await at.driver.mountDatastore(hostId, datastoreSpec(input, shared, proxy.address));
    });
  }
  if (row.mode === 'flr') await missingDisks(world, hand, standing);
}

/** Somebody may have ended it since it was looked at: nothing is made that its clean-up misses. */
async function refuseEnding(world: ReconcileWorld, id: string): Promise<void> {
  const runs = await world.engine.runs({ subject: id, active: true });
  const { state } = await world.recoveries.get(id);
  if (runs.length > 0 || state !== 'available') {
    throw new RouseError('wrong-state', `recovery ${id} has just become ${state}`);
  }
}

/** A machine that was powered off and on again comes up without its attached disks. */
async function missingDisks(world: ReconcileWorld, hand: Hand, standing: Standing): Promise<void> {
  const { row, input, seen } = standing;
  const runs = await world.engine.runs({ subject: row.id });
  const steps = runs.findLast(isOpening)?.steps ?? [];
  const result: Json | undefined = steps.find(({ name }) => name === 'Attach')?.result;
  const { attached = [] } = (result ?? {}) as Partial<Pick<Recovery, 'attached'>>;
  const there = new Set(seen.disks.map(({ device }) => device));
  for (const { disk, device } of attached) {
    if (there.has(device)) continue;
    const thing = thingOf(standing, 'disk', `${device} of ${input.target?.name ?? 'its target'}`);
    const note = `It goes with a power cycle. End it: rouse cancel ${row.id}; then recover again.`;
    hand.leave(thing, `${disk} is no longer attached`, note);
  }
}
