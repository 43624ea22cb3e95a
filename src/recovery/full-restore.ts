import { isRouseError, RouseError } from '../errors.ts';
import type { Datastore, Hypervisor } from '../hypervisors/port.ts';
import { plural } from '../lib/text.ts';
import type { ExportView } from '../proxy/port.ts';
import type { Json, RunView, StepContext, Workflow } from '../workflows/api.ts';
import type { CloseInput } from './cleaning.ts';
import { OpeningSteps } from './opening.ts';
import { step } from './opening-step.ts';
import { type ChosenHost, datastoreSpec, type RecoveryInput } from './plan.ts';
import { isProduction } from './production.ts';

import { settleOpened } from './settling.ts';
import { findDatastore, refuseFull, sizeOf } from './target-datastore.ts';
import { proxyOf, type RecoveryWorld } from './world.ts';

/**
 * Full restore where the manager itself moves the disks (vSphere): the clone is mounted and a
 * machine registered on it, as for instant access, and relocated to production while it is off; then
 * it is powered on, if asked, and everything of ours goes (cleaning.ts).
 *
 * Invariants: nothing is powered on before its disks are where they belong. What has arrived is
 * production: no undo stops or unregisters it, and a power-on that fails leaves it, and says so.
 */
export function fullRestore(world: RecoveryWorld): Workflow<RecoveryInput> {
  const on = new OpeningSteps(world);
  const to = new RestoringSteps(world, on);
  return {
    kind: 'recovery.restore',
    steps: [
      step(1, 'Device', (context) => on.findDevice(context)),
      step(2, 'Proxy', (context) => on.chooseProxy(context)),
      step(3, 'Host', (context) => to.chooseHost(context)),
      step(4, 'Hand over', (context) => on.handOver(context)),
      step(5, 'Ask for the copy', (context) => on.askForCopy(context)),
      step(
        6,
        'Clone',
        (context) => on.clone(context),
        (context) => on.dropClone(context),
      ),
      step(
        7,
        'Export',
        (context) => on.share(context),
        (context) => on.dropShare(context),
      ),
      step(
        8,
        'Datastore',
        (context) => on.mount(context),
        (context) => on.unmount(context),
      ),
      step(
        9,
        'Configure',
        (context) => on.configure(context),
        (context) => to.unregister(context),
      ),
      step(
        12,
        'Relocate',
        (context) => to.relocate(context),
        (context) => to.stopRelocation(context),
      ),
      step(10, 'Power on', (context) => to.powerOn(context)),
      step(11, 'Available', (context) => on.available(context)),
    ],
    settled: (run, input) => settleRestored(world, run, input),
  };
}

type Context = StepContext<RecoveryInput>;

class RestoringSteps {
  readonly #world: RecoveryWorld;
  readonly #on: OpeningSteps;

  constructor(world: RecoveryWorld, on: OpeningSteps) {
    this.#world = world;
    this.#on = on;
  }

  /** 3. As ever; and where it shall go must be there and have room. */
  async chooseHost(context: Context): Promise<Json> {
    const { input } = context;
    const proxy = await proxyOf(this.#world, input.recoveryId);
    const { disks } = await proxy.calls.saveset(input.savesetId);
    const target = await this.#target(input);
    refuseFull(target, sizeOf({ disks }));
    return this.#on.chooseHost(context);
  }

  async #target(input: RecoveryInput, hostId?: string): Promise<Datastore> {
    const { datastores } = await (await this.#hypervisor(input)).inventory();
    return findDatastore(datastores, input, hostId);
  }

  #hypervisor({ hypervisorId }: RecoveryInput): Promise<Hypervisor> {
    if (hypervisorId === null) {
      throw new RouseError('bad-request', 'no hypervisor is known for this machine', {
        advice: 'Add one: rouse hypervisor add NAME URI',
      });
    }
    return this.#world.hypervisor(hypervisorId);
  }

  /** 12. The machine that is off goes to production, with its disks. */
  async relocate(context: Context): Promise<Json> {
    const { input } = context;
    const hypervisor = await this.#hypervisor(input);
    const host = context.result('Host') as ChosenHost;
    const target = await this.#target(input, host.id);
    const { address } = await proxyOf(this.#world, input.recoveryId);
    const shared = context.result('Export') as unknown as ExportView;
    const { machineId } = context.result('Configure') as { machineId: string };
    const { disks } = await hypervisor.relocate(
      {
        machineId,
        fromDatastore: datastoreSpec(input, shared, address),
        toDatastoreId: target.id,
        bandwidthBytesPerSecond: 0,
      },
      {
        signal: context.signal,
        progress: (done, total) => context.progress({ done, total, unit: 'bytes' }),
      },
    );
    return { detail: `${plural(disks.length, 'disk')} on ${target.name}` };
  }

  async stopRelocation({ input }: Context): Promise<void> {
    const hypervisor = await this.#hypervisor(input);
    const machine = await hypervisor.findMarked(input.recoveryId);
    if (machine !== undefined) await hypervisor.stopRelocation(machine);
  }

  async unregister(context: Context): Promise<void> {
    const { input } = context;
    const { recoveryId, name } = input;
    const hypervisor = await this.#hypervisor(input);
    const machine = await hypervisor.findMarked(recoveryId);
    if (machine === undefined || !(await isProduction(hypervisor, input, machine))) {
      return this.#on.unregister(context);
    }
    const message = `${name} is on ${input.datastore} already, and stays registered there`;
    await this.#world.tell(recoveryId, 'warning', 'recovery.restored', message);
  }

  /** 10. It is restored, whether it starts or not. */
  async powerOn(context: Context): Promise<Json> {
    const { input } = context;
    try {
      return await this.#on.powerOn(context);
    } catch (error) {
      if (!isRouseError(error) || error.code === 'hypervisor-unreachable') throw error;
      if (context.signal.aborted) throw error;
      const message = `${input.name} is restored and was not powered on: ${error.message}`;
      await this.#world.tell(input.recoveryId, 'warning', 'recovery.not-powered-on', message);
      return { detail: `${error.message}. ${error.advice}`, skipped: true };
    }
  }
}

/** What is restored leaves its clone behind, which goes now. */
async function settleRestored(
  world: RecoveryWorld,
  run: RunView,
  input: RecoveryInput,
): Promise<void> {
  if (run.state !== 'done') return settleOpened(world, run, input);
  const { recoveryId: id, name } = input;
  const host = run.steps.find((one) => one.name === 'Host')?.result as ChosenHost | undefined;
  const hostId = host?.id ?? null;
  const close: CloseInput = { recovery: input, reason: 'restored', hostId, keepWrites: false };
  await world.transaction(async () => {
    const states = ['starting', 'cleaning'] as const;
    if (!(await world.recoveries.updateWhile(id, states, { state: 'cleaning' }))) return;
    await world.engine.submit('recovery.close', id, close, `${run.id}.close`);
  });
  await world.tell(id, 'info', 'recovery.restored', `${name} is restored`);
}
