import { RouseError } from '../errors.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import { recoveryLimits } from '../limits.ts';
import type { ExportView } from '../proxy/port.ts';
import type { Step, StepContext } from '../workflows/api.ts';
import { detachDisks } from './attaching.ts';
import {
  cloneIdOf,
  datastoreNameOf,
  hasServedMachine,
  isMounted,
  type ReachableProxy,
  type RecoveryInput,
} from './plan.ts';
import { isProduction } from './production.ts';
import { proxyOf, type RecoveryWorld } from './world.ts';

/**
 * Step 13, in the only safe order: the machine lets go of the datastore, the host unmounts it, the
 * host is silent, the export goes, the clone goes. In doubt the export stays: a host that loses a
 * datastore it uses is worse off than one that keeps one too many.
 */
export type CloseInput = {
  readonly recovery: RecoveryInput;
  readonly reason: 'relocated' | 'cancelled' | 'lease' | 'restored';
  readonly hostId: string | null;
  /** True: the clone with its writes stays, to be resumed or sealed later. */
  readonly keepWrites: boolean;
};

type Context = StepContext<CloseInput>;

export function cleaningSteps(world: RecoveryWorld): Step<CloseInput>[] {
  const step = (name: string, run: (context: Context) => Promise<string>): Step<CloseInput> => ({
    number: 13,
    name,
    attemptsMax: recoveryLimits.cleaningAttemptsMax,
    run: async (context) => ({ detail: await run(context) }),
  });
  return [
    step('Let go of the machine', (context) => letGo(world, context)),
    step('Unmount the datastore', (context) => unmount(world, context)),
    step('Drop the export', (context) => dropExport(world, context)),
    step('Drop the clone', (context) => dropClone(world, context)),
  ];
}

/** A relocated machine is production and is never touched again. */
async function letGo(world: RecoveryWorld, { input }: Context): Promise<string> {
  const { recovery, reason } = input;
  if (recovery.mode === 'flr') return detachDisks(world, recovery);
  if (recovery.hypervisorId === null || !hasServedMachine(recovery)) return 'there is none';
  const hypervisor = await world.hypervisor(recovery.hypervisorId);
  const users = await hypervisor.datastoreUsers(datastoreNameOf(recovery));
  if (reason === 'relocated' || reason === 'restored') {
    if (users.length === 0) return 'it is production now and stays';
    throw new RouseError('busy', `${users.join(', ')} still has disks on the datastore`, {
      advice: 'Relocate what is left of it; clean-up goes on by itself.',
    });
  }
  const machine = await hypervisor.findMarked(recovery.recoveryId);
  if (machine === undefined) return 'it is gone already';
  if (await isProduction(hypervisor, recovery, machine)) {
    return `${recovery.name} has moved to other storage: it is production now and stays`;
  }
  await hypervisor.powerOff(machine, 'off');
  await hypervisor.unregister(machine);
  return `${recovery.name} is unregistered`;
}

async function unmount(world: RecoveryWorld, { input }: Context): Promise<string> {
  const { recovery, hostId } = input;
  if (recovery.hypervisorId === null || !isMounted(recovery)) return 'there is none';
  const hypervisor = await world.hypervisor(recovery.hypervisorId);
  const name = datastoreNameOf(recovery);
  const users = await hypervisor.datastoreUsers(name);
  if (users.length > 0) {
    throw new RouseError('busy', `${users.join(', ')} still uses datastore ${name}`, {
      advice: `Detach its disks from ${name}; clean-up goes on by itself.`,
    });
  }
  const hosts = await hostsWith(hypervisor, name, hostId);
  if (hosts.length === 0) return 'it was never mounted';
  for (const host of hosts) await hypervisor.unmountDatastore(host, name);
  return `${name} is unmounted`;
}

/** Every host that shows it, and the one it was meant for in any case. */
async function hostsWith(
  hypervisor: Hypervisor,
  name: string,
  hostId: string | null,
): Promise<readonly string[]> {
  const { datastores } = await hypervisor.inventory();
  const shown = datastores.find((datastore) => datastore.name === name)?.hostIds ?? [];
  return [...new Set(hostId === null ? shown : [hostId, ...shown])];
}

async function dropExport(world: RecoveryWorld, context: Context): Promise<string> {
  const { recovery } = context.input;
  const proxy = await proxyOf(world, recovery.recoveryId);
  const cloneId = cloneIdOf(recovery, proxy.name);
  if (recovery.mode !== 'publish') {
    const waiting = { clock: world.clock, signal: context.signal };
    const path = await removeExport(proxy, cloneId, { ...waiting, mustBeSilent: true });
    return path === undefined ? 'there is none' : `${path} is gone`;
  }
  return dropPublication(world, proxy, cloneId, context.input);
}

/** At the end of a lease it stays while a client may use it; a person may cut clients off. */
async function dropPublication(
  world: RecoveryWorld,
  proxy: ReachableProxy,
  cloneId: string,
  { recovery: { recoveryId }, reason }: CloseInput,
): Promise<string> {
  const exported = await findExport(proxy, cloneId);
  if (exported === undefined) return 'there is none';
  const { path, mounted } = exported;
  const use = useOf(exported, world.clock.now());
  const { options } = await world.recoveries.get(recoveryId);
  const isAsked = reason !== 'lease' || (options as RecoveryInput).cutOff === true;
  if (!isAsked && use !== undefined) {
    const advice = `Unmount it there, or cut it off: rouse cancel ${recoveryId}`;
    throw new RouseError('busy', `the export ${path} stays: ${use}`, { advice });
  }
  await proxy.calls.deleteExport(path);
  const isCutOff = exported.connected.length > 0 || mounted.length > 0;
  if (!isCutOff) return `${path} is gone`;
  const who = use ?? `${mounted.join(', ')} mounted it, and was silent since`;
  const message = `${path} was taken away from clients: ${who}`;
  await world.tell(recoveryId, 'warning', 'recovery.clients-cut-off', message);
  return `${path} is gone; ${who}`;
}

/**
 * Who may still use a publication; undefined: nobody. Its clients are not ours to ask, so what they
 * did has to tell: an open connection; a mount without an unmount, until it was silent for a day;
 * and for a day after a start of the proxy, which forgets mounts, anybody (docs/decisions/).
 */
export function useOf(exported: ExportView, nowMs: number): string | undefined {
  const { connected, mounted, watchedSinceMs, lastUsedMs } = exported;
  if (connected.length > 0) return `${connected.join(', ')} is connected`;
  const silentMs = nowMs - Math.max(watchedSinceMs, lastUsedMs ?? 0);
  if (silentMs >= recoveryLimits.mountedSilenceMs) return undefined;
  if (mounted.length > 0) return `${mounted.join(', ')} has it mounted`;
  if (nowMs - watchedSinceMs >= recoveryLimits.mountedSilenceMs) return undefined;
  return 'the proxy was started less than a day ago, so nobody knows who has it mounted';
}

async function dropClone(world: RecoveryWorld, { input }: Context): Promise<string> {
  if (input.keepWrites) return 'kept with what was written';
  const proxy = await proxyOf(world, input.recovery.recoveryId);
  await proxy.calls.deleteClone(cloneIdOf(input.recovery, proxy.name));
  return 'the clone is deleted';
}

export interface RemovalOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Wait until no client uses it, and fail rather than cut one off. */
  readonly mustBeSilent: boolean;
}

/** Removes the clone's export once its host is silent; answers its path, if there was one. */
export async function removeExport(
  proxy: ReachableProxy,
  cloneId: string,
  options: RemovalOptions,
): Promise<string | undefined> {
  const exported = await findExport(proxy, cloneId);
  if (exported === undefined) return undefined;
  if (options.mustBeSilent) await waitForSilence(proxy, cloneId, options);
  await proxy.calls.deleteExport(exported.path);
  return exported.path;
}

async function findExport(proxy: ReachableProxy, cloneId: string): Promise<ExportView | undefined> {
  const all = await proxy.calls.exports();
  return all.find((entry) => entry.cloneId === cloneId);
}

/** Silent: no connection that used it is open, or no call came for long enough. */
async function waitForSilence(
  proxy: ReachableProxy,
  cloneId: string,
  { clock, signal }: RemovalOptions,
): Promise<void> {
  const deadline = clock.monotonic() + recoveryLimits.silenceWaitMsMax;
  for (;;) {
    const exported = await findExport(proxy, cloneId);
    if (exported === undefined || exported.connected.length === 0) return;
    const quietMs = clock.now() - (exported.lastUsedMs ?? 0);
    if (quietMs >= recoveryLimits.silenceMs) return;
    if (clock.monotonic() >= deadline) {
      const who = exported.connected.join(', ');
      throw new RouseError('busy', `${who} still uses the export ${exported.path}`, {
        advice: 'Unmount it there; clean-up goes on by itself.',
      });
    }
    await clock.sleep(recoveryLimits.silencePollMs, signal);
  }
}
