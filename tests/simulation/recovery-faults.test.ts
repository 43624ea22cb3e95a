import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError, RouseError } from '#src/errors.ts';
import type { HypervisorCall } from '#src/hypervisors/memory-faults.ts';
import type { Proxy } from '#src/proxy/port.ts';
import type { Recovery } from '#src/recovery/schema.ts';
import { recoveryRequest } from '#src/recovery/schema.ts';
import { RecoveryScene, type Running } from './recovery-world.ts';

type State = Recovery['state'];

/** One recovery and the server that works on it; when that dies, the next goes on. */
class Story {
  readonly scene = new RecoveryScene();
  died = false;
  id = '';
  #server: Running | undefined;

  get server(): Running {
    assert.ok(this.#server);
    return this.#server;
  }

  async start(): Promise<void> {
    this.#server = await this.scene.start();
  }

  async wake(): Promise<void> {
    await this.start();
    const request = recoveryRequest.parse({ machine: 'web01', powerOn: true });
    this.id = (await this.server.recoveries.create(request)).id;
  }

  async until(...states: State[]): Promise<Recovery> {
    for (;;) {
      const view = await this.server.until(this.id, states);
      if (view !== 'died') return view;
      await this.#next();
    }
  }

  /** If the server has died, the next one goes on. */
  async revive(): Promise<void> {
    const alive = new Promise<'alive'>((resolve) => setImmediate(() => resolve('alive')));
    if ((await Promise.race([this.server.died, alive])) === 'died') await this.#next();
  }

  async #next(): Promise<void> {
    this.died = true;
    await this.server.bury();
    this.#server = await this.scene.start();
  }

  /** Asks; a server that died while it was asked is asked again if it had not taken it up. */
  async ask(while_: State, what: (server: Running) => Promise<unknown>): Promise<void> {
    const asked = what(this.server).then(() => 'asked' as const);
    if ((await Promise.race([asked, this.server.died])) === 'asked') return;
    await this.#next();
    if ((await this.server.recoveries.get(this.id)).state === while_) await what(this.server);
  }

  async cancel(while_: State, keepWrites = false): Promise<void> {
    await this.ask(while_, (server) => server.recoveries.cancel(this.id, { keepWrites }));
  }

  async nothingIsLeft(when: string): Promise<void> {
    const { machines, datastores } = await this.scene.hypervisor.inventory();
    const names = machines.map(({ name }) => name);
    const mounted = datastores.filter(({ kind }) => kind === 'nfs').map(({ name }) => name);
    const { exportsByClone, clonesById } = this.scene.proxy;
    const left = [...names, ...mounted, ...exportsByClone.keys(), ...clonesById.keys()];
    assert.deepEqual(left, [], `${when}: something is left`);
  }

  async runs(when: string): Promise<void> {
    const { machines } = await this.scene.hypervisor.inventory();
    const powers = machines.filter(({ name }) => name === 'web01').map(({ power }) => power);
    assert.deepEqual(powers, ['on'], `${when}: it runs, once`);
  }

  async end(): Promise<void> {
    await this.#server?.stop();
    this.scene.end();
  }
}

async function withStory(work: (story: Story) => Promise<void>): Promise<void> {
  const story = new Story();
  try {
    await work(story);
  } finally {
    await story.end();
  }
}

/**
 * Tells the story again and again, dying some external meetings later each time. Each call is met
 * before and after it acts, so an odd stride tries both.
 */
async function killedEverywhere(
  stride: number,
  tell: (story: Story, dieAt: number) => Promise<void>,
): Promise<number> {
  for (let dieAt = 1; ; dieAt += stride) {
    let died = true;
    await withStory(async (story) => {
      await tell(story, dieAt);
      died = story.died;
    });
    if (!died) return dieAt - 1;
  }
}

test('killed anywhere in the clean-up of a cancelled recovery, it ends and leaves nothing', async () => {
  const points = await killedEverywhere(1, async (story, dieAt) => {
    await story.wake();
    await story.until('available');
    story.scene.dieAfter(dieAt);
    await story.cancel('available');
    await story.until('cancelled');
    await story.nothingIsLeft(`killed at ${dieAt}`);
  });
  assert.ok(points >= 16, `only ${points} points were tried`);
});

test('killed anywhere while a parked recovery is resumed, it runs again on the same clone', async () => {
  const points = await killedEverywhere(3, async (story, dieAt) => {
    await story.wake();
    await story.until('available');
    await story.cancel('available', true);
    await story.until('parked');
    story.scene.dieAfter(dieAt);
    await story.ask('parked', (server) => server.recoveries.resume(story.id));
    const view = await story.until('available', 'parked');
    assert.equal(view.state, 'available', `killed at ${dieAt}`);
    await story.runs(`killed at ${dieAt}`);
    assert.equal(story.scene.proxy.clonesMade.length, 1, 'the clone with its writes is the first');
  });
  assert.ok(points >= 16, `only ${points} points were tried`);
});

/** What a step calls to do its work, step 4 to 10. `bad-request`: no attempt would mend it. */
const onProxy = ['status', 'saveset', 'createClone', 'createExport', 'writeCloneFile'] as const;
const onHypervisor = ['inventory', 'mountDatastore', 'register', 'powerOn'] as const;
const broken = () => new RouseError('bad-request', 'told to fail');

type Failing =
  | { readonly on: 'proxy'; readonly call: keyof Proxy; readonly when: 'before' | 'after' }
  | { readonly on: 'hypervisor'; readonly call: HypervisorCall; readonly when: 'before' | 'after' };

const failing: readonly Failing[] = (['before', 'after'] as const).flatMap((when) => [
  ...onProxy.map((call) => ({ on: 'proxy' as const, call, when })),
  ...onHypervisor.map((call) => ({ on: 'hypervisor' as const, call, when })),
]);

function fail(story: Story, fault: Failing): void {
  if (fault.on === 'proxy') story.scene.failProxy(fault.call, fault.when, broken());
  else story.scene.hypervisor.faults.failOnce(fault.call, broken(), fault.when);
}

test('whatever step fails, before or after it took effect, everything is undone', async () => {
  for (const fault of failing) {
    await withStory(async (story) => {
      const what = `${fault.call} failed ${fault.when} it acted`;
      fail(story, fault);
      await story.wake();
      const view = await story.until('failed', 'available');
      assert.equal(view.state, 'failed', what);
      assert.equal(view.error?.message, 'told to fail', what);
      await story.nothingIsLeft(what);
      await assert.rejects(story.server.recoveries.cancel(story.id, { keepWrites: false }), {
        code: 'wrong-state',
      });
    });
  }
});

test('killed anywhere while a failed recovery is undone, it is undone in the end', async () => {
  const points = await killedEverywhere(3, async (story, dieAt) => {
    story.scene.hypervisor.faults.failOnce('powerOn', broken(), 'after');
    await story.wake();
    story.scene.dieAfter(dieAt);
    const view = await story.until('failed', 'available');
    // Killed before the fault was met, there is still the fault; after it, the step is repeated.
    if (view.state === 'failed') await story.nothingIsLeft(`killed at ${dieAt}`);
    else await story.runs(`killed at ${dieAt}`);
  });
  assert.ok(points >= 20, `only ${points} points were tried`);
});

test('whatever fails in resuming a parked recovery, its clone stays and it can be resumed', async () => {
  for (const fault of failing) {
    await withStory(async (story) => {
      const what = `${fault.call} failed ${fault.when} it acted`;
      await story.wake();
      await story.until('available');
      await story.cancel('available', true);
      await story.until('parked');
      fail(story, fault);
      await story.server.recoveries.resume(story.id);
      const view = await story.until('parked', 'available');
      assert.equal(view.state, 'parked', what);
      assert.equal(story.scene.proxy.clonesById.size, 1, `${what}: the clone is kept`);
      assert.equal(story.scene.proxy.exportsByClone.size, 0, what);
      if (fault.on === 'proxy') story.scene.failProxy('vaultStats', 'before', broken());
      await story.server.recoveries.resume(story.id);
      await story.until('available');
      await story.runs(what);
      assert.equal(story.scene.proxy.clonesMade.length, 1, what);
    });
  }
});

test('a relocation that fails half way leaves the machine running and available', async () => {
  await withStory(async (story) => {
    await story.wake();
    await story.until('available');
    const error = new RouseError('hypervisor-error', 'the target is full');
    story.scene.hypervisor.faults.failOnce('relocate', error, 'after');
    await story.server.recoveries.relocate(story.id, { datastore: 'production' });
    const view = await story.until('available', 'done');
    assert.equal(view.state, 'available');
    assert.equal(view.steps[11]?.state, 'undone');
    assert.equal(view.steps[11]?.detail, 'the target is full');
    await story.runs('after the failure');
    assert.equal(story.scene.proxy.exportsByClone.size, 1);
    await story.server.recoveries.relocate(story.id, { datastore: 'production' });
    await story.until('done');
    await story.runs('after the second try');
  });
});

test('what was moved by anyone is production: cancel takes the leftovers and not the machine', async () => {
  await withStory(async (story) => {
    await story.wake();
    const { machineId } = await story.until('available');
    assert.ok(machineId !== null);
    await story.scene.hypervisor.relocate(
      {
        machineId,
        fromDatastore: {
          name: `rouse-${story.id}`,
          server: '',
          path: '',
          nfsPort: 1,
          mountPort: 1,
        },
        toDatastoreId: 'production',
        bandwidthBytesPerSecond: 0,
      },
      { signal: new AbortController().signal, progress: () => undefined },
    );
    await story.cancel('available');
    await story.until('cancelled');
    await story.runs('after the cancel');
    assert.equal(story.scene.proxy.exportsByClone.size + story.scene.proxy.clonesById.size, 0);
  });
});

test('a datastore that someone uses is not taken away; clean-up goes on when it is free', async () => {
  await withStory(async (story) => {
    await story.wake();
    const { machineId } = await story.until('available');
    const { hypervisor, proxy } = story.scene;
    const exported = [...proxy.exportsByClone.values()][0];
    assert.ok(machineId !== null && exported !== undefined);
    const other = hypervisor.addMachine({ name: 'helper' });
    const device = await hypervisor.attachDisk(other.id, {
      datastore: {
        name: `rouse-${story.id}`,
        server: '127.0.0.1',
        path: exported.path,
        nfsPort: 1,
        mountPort: 1,
      },
      path: 'web01/vda-flat.vmdk',
      sizeBytes: 1,
      serial: 'x',
    });
    await story.cancel('available');
    const stopped = new AbortController();
    for await (const view of story.server.recoveries.watch(story.id, stopped.signal)) {
      assert.equal(view.state, 'cleaning');
      assert.equal(view.steps[12]?.state, 'running');
      if (view.steps[12]?.detail?.includes('still uses') === true) break;
    }
    assert.equal(proxy.exportsByClone.size, 1, 'in doubt it is exported');
    assert.equal(proxy.clonesById.size, 1);
    await hypervisor.detachDisk(other.id, device);
    await story.until('cancelled');
    hypervisor.forgetMachine(other.id);
    await story.nothingIsLeft('once it was free');
  });
});

test('a clean-up that gave up can be asked for again', async () => {
  await withStory(async (story) => {
    await story.wake();
    await story.until('available');
    const forbidden = new RouseError('forbidden', 'you may not unmount here');
    story.scene.hypervisor.faults.failOnce('unmountDatastore', forbidden);
    await story.cancel('available');
    const view = await story.until('failed');
    assert.equal(view.steps[12]?.state, 'failed');
    assert.equal(story.scene.proxy.exportsByClone.size, 1, 'the host still has it mounted');
    await story.cancel('failed');
    await story.until('cancelled');
    await story.nothingIsLeft('the second time');
  });
});

test('of cancel, relocate and renew at once, the state of one wins and the end is clean', async () => {
  await withStory(async (story) => {
    await story.wake();
    await story.until('available');
    const { recoveries } = story.server;
    const results = await Promise.allSettled([
      recoveries.relocate(story.id, { datastore: 'production' }),
      recoveries.cancel(story.id, { keepWrites: false }),
      recoveries.cancel(story.id, { keepWrites: false }),
      recoveries.renew(story.id, { leaseMs: 1_000_000 }),
    ]);
    const errors = results.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
    for (const error of errors) {
      assert.ok(error instanceof RouseError);
      assert.match(error.code, /wrong-state|busy/);
    }
    const view = await story.until('cancelled', 'done');
    if (view.state === 'cancelled') await story.nothingIsLeft('cancelled');
    else await story.runs('relocated');
  });
});

test('cancelled at any moment of a relocation, the machine runs and its place is told right', async () => {
  const states = new Set<string>();
  for (let at = 0; at < 14; at++) {
    await withStory(async (story) => {
      await story.wake();
      await story.until('available');
      await story.server.recoveries.relocate(story.id, { datastore: 'production' });
      for (let turn = 0; turn < at * 2; turn++) await new Promise((next) => setImmediate(next));
      await story.server.recoveries.cancel(story.id, { keepWrites: false }).catch((error) => {
        assert.equal((error as RouseError).code, 'wrong-state', 'only when it is done already');
      });
      const { state } = await story.until('available', 'done');
      states.add(state);
      await story.runs(`cancelled at ${at}`);
      const used = await story.scene.hypervisor.datastoreUsers(`rouse-${story.id}`);
      assert.equal(used.length, state === 'available' ? 1 : 0, `cancelled at ${at}: ${state}`);
    });
  }
  assert.ok(states.has('available'), [...states].join());
});

test('a datastore that is not there is refused before anything is begun, also by a dry run', async () => {
  await withStory(async (story) => {
    await story.start();
    const { recoveries } = story.server;
    for (const more of [{ mode: 'new', datastore: 'nowhere' }, { relocateTo: 'nowhere' }]) {
      const request = recoveryRequest.parse({ machine: 'web01', ...more });
      const isRefused = (error: unknown) => {
        assert.ok(isRouseError(error, 'not-found'), String(error));
        assert.match(error.advice, /production/);
        return true;
      };
      await assert.rejects(recoveries.create(request), isRefused);
      await assert.rejects(recoveries.plan(request), isRefused);
    }
    assert.deepEqual(await recoveries.list({}), []);
    await story.nothingIsLeft('no datastore');
  });
});

test('killed anywhere at the end of a lease, the machine is off and kept', async () => {
  const points = await killedEverywhere(1, async (story, dieAt) => {
    await story.wake();
    await story.until('available');
    story.scene.dieAfter(dieAt);
    await story.ask('available', (server) => server.recoveries.renew(story.id, { leaseMs: 1 }));
    await story.until('parked');
    const isOff = async () => (await story.scene.hypervisor.inventory()).machines[0]?.power;
    while ((await isOff()) !== 'off') {
      await Promise.race([story.server.died, new Promise((next) => setTimeout(next, 5))]);
      await story.revive();
    }
    // One more meeting after the shutdown: a server that died then has the clean-up time to set.
    await story.revive();
    assert.equal(story.scene.proxy.clonesById.size, 1);
    assert.equal(story.scene.proxy.exportsByClone.size, 1);
  });
  assert.ok(points >= 3, `only ${points} points were tried`);
});

test('a cancel that comes while the first picture is taken is not lost', async () => {
  await withStory(async (story) => {
    const { promise, resolve } = Promise.withResolvers<void>();
    story.scene.hypervisor.faults.holdOnce('screenPicture', promise);
    await story.wake();
    while (!story.scene.hypervisor.faults.calls.includes('screenPicture')) {
      await new Promise((next) => setImmediate(next));
    }
    await story.cancel('available');
    resolve();
    await story.until('cancelled');
    await story.nothingIsLeft('cancelled while its picture was taken');
  });
});
