import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouseError } from '#src/errors.ts';
import type { MemoryMachine } from '#src/hypervisors/memory.ts';
import type { HypervisorCall } from '#src/hypervisors/memory-faults.ts';
import type { Proxy } from '#src/proxy/port.ts';
import { type Recovery, recoveryRequest } from '#src/recovery/schema.ts';
import { RecoveryScene, type Running } from './recovery-world.ts';

type State = Recovery['state'];

/** One file-level recovery into a machine that runs; when its server dies, the next goes on. */
class Story {
  readonly scene = new RecoveryScene();
  readonly helper: MemoryMachine;
  died = false;
  id = '';
  #server: Running | undefined;

  constructor() {
    const own = { name: 'vda', sizeBytes: 1, format: 'raw', source: '/production/helper.raw' };
    this.helper = this.scene.hypervisor.addMachine({ name: 'helper', power: 'on', disks: [own] });
  }

  get server(): Running {
    assert.ok(this.#server);
    return this.#server;
  }

  async begin(dieAfter?: number): Promise<void> {
    this.#server = await this.scene.start(dieAfter);
    const wanted = { machine: 'web01', mode: 'flr', into: 'helper' };
    const asked = this.server.recoveries.create(recoveryRequest.parse(wanted));
    const view = await Promise.race([asked, this.server.died]);
    if (view === 'died') {
      await this.#next();
      const [known] = await this.server.recoveries.list({});
      this.id =
        known?.id ?? (await this.server.recoveries.create(recoveryRequest.parse(wanted))).id;
    } else {
      this.id = view.id;
    }
  }

  async until(...states: State[]): Promise<Recovery> {
    for (;;) {
      const view = await this.server.until(this.id, states);
      if (view !== 'died') return view;
      await this.#next();
    }
  }

  async #next(): Promise<void> {
    this.died = true;
    await this.server.bury();
    this.#server = await this.scene.start();
  }

  async ask(while_: State, what: (server: Running) => Promise<unknown>): Promise<void> {
    const asked = what(this.server).then(() => 'asked' as const);
    if ((await Promise.race([asked, this.server.died])) === 'asked') return;
    await this.#next();
    if ((await this.server.recoveries.get(this.id)).state === while_) await what(this.server);
  }

  cancel(while_: State, keepWrites = false): Promise<void> {
    return this.ask(while_, (server) => server.recoveries.cancel(this.id, { keepWrites }));
  }

  get devices(): readonly string[] {
    return this.helper.disks.map(({ name }) => name);
  }

  async nothingIsLeft(when: string): Promise<void> {
    const { datastores } = await this.scene.hypervisor.inventory();
    const mounted = datastores.filter(({ kind }) => kind === 'nfs').map(({ name }) => name);
    const { exportsByClone, clonesById } = this.scene.proxy;
    assert.deepEqual([...mounted, ...exportsByClone.keys(), ...clonesById.keys()], [], when);
    assert.deepEqual(this.devices, ['vda'], `${when}: the target has its own disk alone`);
    assert.equal(this.helper.power, 'on', `${when}: the target runs`);
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

/** Tells the story again, dying one external meeting later each time, until none is met. */
async function killedEverywhere(tell: (story: Story, dieAt: number) => Promise<void>) {
  for (let dieAt = 1; ; dieAt += 1) {
    let died = true;
    await withStory(async (story) => {
      await tell(story, dieAt);
      died = story.died;
    });
    if (!died) return dieAt - 1;
  }
}

test('killed at any external call, the disk is attached once, and all is gone when cancelled', async () => {
  const points = await killedEverywhere(async (story, dieAt) => {
    await story.begin(dieAt);
    const view = await story.until('available', 'failed');
    assert.equal(view.state, 'available', `killed at ${dieAt}`);
    assert.deepEqual(story.devices, ['vda', 'vdb'], `killed at ${dieAt}`);
    assert.equal(story.scene.proxy.clonesMade.length, 1, `killed at ${dieAt}: cloned once`);
    const [exported] = story.scene.proxy.exportsByClone.values();
    assert.deepEqual(exported?.clients, ['127.0.0.1', '::1'], "its host's addresses alone");
    await story.cancel('available');
    await story.until('cancelled');
    await story.nothingIsLeft(`killed at ${dieAt}`);
  });
  assert.ok(points >= 20, `only ${points} points were tried`);
});

test('killed anywhere while it ends, it ends and leaves nothing', async () => {
  const points = await killedEverywhere(async (story, dieAt) => {
    await story.begin();
    await story.until('available');
    story.scene.dieAfter(dieAt);
    await story.cancel('available');
    await story.until('cancelled');
    await story.nothingIsLeft(`killed at ${dieAt}`);
  });
  assert.ok(points >= 14, `only ${points} points were tried`);
});

test('cancelled at any external call, everything is undone', async () => {
  for (let at = 1; at < 40; at += 1) {
    await withStory(async (story) => {
      await story.begin();
      while (story.scene.calls < at) {
        if ((await story.server.recoveries.get(story.id)).state === 'available') break;
        await new Promise((resolve) => setImmediate(resolve));
      }
      await story.server.recoveries.cancel(story.id, { keepWrites: false });
      await story.until('cancelled');
      await story.nothingIsLeft(`cancelled at ${at}`);
    });
  }
});

const broken = () => new RouseError('bad-request', 'told to fail');

test('whatever step fails, before or after it took effect, everything is undone', async () => {
  const onProxy: (keyof Proxy)[] = ['status', 'saveset', 'createClone', 'createExport'];
  const onHypervisor: HypervisorCall[] = ['mountDatastore', 'attachDisk', 'guestDisks'];
  for (const when of ['before', 'after'] as const) {
    for (const call of [...onProxy, ...onHypervisor]) {
      await withStory(async (story) => {
        const what = `${call} failed ${when} it acted`;
        if (onProxy.includes(call as keyof Proxy)) {
          story.scene.failProxy(call as keyof Proxy, when, broken());
        } else {
          story.scene.hypervisor.faults.failOnce(call as HypervisorCall, broken(), when);
        }
        await story.begin();
        const view = await story.until('failed', 'available');
        assert.equal(view.state, 'failed', what);
        assert.equal(view.error?.message, 'told to fail', what);
        await story.nothingIsLeft(what);
      });
    }
  }
});

test('a dry run names host, target and disks, and changes nothing', async () => {
  await withStory(async (story) => {
    await story.begin();
    await story.until('available');
    const wanted = { machine: 'web01', mode: 'flr', into: 'helper', dryRun: true };
    const calls = story.scene.hypervisor.faults.calls.length;
    const plan = await story.server.recoveries.plan(recoveryRequest.parse(wanted));
    assert.deepEqual([plan.host, plan.name], ['memory', 'web01-in-helper']);
    assert.deepEqual(plan.changes, ['helper sees vda of the backup, 1 MiB']);
    assert.equal(plan.steps[8]?.name, 'Attach');
    assert.equal(plan.steps[2]?.detail, 'memory: helper runs on it');
    const made = story.scene.hypervisor.faults.calls.slice(calls);
    assert.deepEqual(new Set(made), new Set(['inventory', 'preflight']));
  });
});

test('its view says where the disks appeared, and whether the guest sees them', async () => {
  await withStory(async (story) => {
    await story.begin();
    const view = await story.until('available');
    assert.deepEqual(view.target, { id: 'uuid-of-helper', name: 'helper' });
    const serial = `rouse-${story.id}-0`;
    assert.deepEqual(view.attached, [{ disk: 'vda', device: 'vdb', serial, seenAs: null }]);
    assert.match(view.steps[8]?.detail ?? '', /vda is vdb; not confirmed: no guest agent/);
    assert.deepEqual(view.steps.map(({ name, state }) => `${name} ${state}`).slice(8, 10), [
      'Attach done',
      'Power on skipped',
    ]);
    assert.ok(serial.length <= 20, 'a virtio-blk serial is not cut');
  });
  await withStory(async (story) => {
    story.helper.agent = (disks) =>
      disks.map(({ name }) => ({ name, seenAs: `/dev/${name}`, mounts: [] }));
    await story.begin();
    const view = await story.until('available');
    assert.equal(view.attached[0]?.seenAs, '/dev/vdb');
    assert.match(view.steps[8]?.detail ?? '', /its guest sees \/dev\/vdb$/);
  });
});

test('a disk that the guest has mounted is not taken away; clean-up goes on when it is free', async () => {
  await withStory(async (story) => {
    let mounts = ['/mnt/restore'];
    story.helper.agent = (disks) =>
      disks.map(({ name }) => ({ name, seenAs: `/dev/${name}`, mounts }));
    await story.begin();
    await story.until('available');
    await story.cancel('available');
    const stopped = new AbortController();
    for await (const view of story.server.recoveries.watch(story.id, stopped.signal)) {
      if (view.steps[12]?.detail?.includes('mounted at /mnt/restore') === true) break;
    }
    assert.deepEqual(story.devices, ['vda', 'vdb']);
    assert.equal(story.scene.proxy.exportsByClone.size, 1);
    mounts = [];
    await story.until('cancelled');
    await story.nothingIsLeft('once it was unmounted');
  });
});

test('at the end of its lease the disks go and the writes are kept; it can go on', async () => {
  const points = await killedEverywhere(async (story, dieAt) => {
    await story.begin();
    await story.until('available');
    story.scene.dieAfter(dieAt);
    await story.ask('available', (server) => server.recoveries.renew(story.id, { leaseMs: 1 }));
    const view = await story.until('parked');
    assert.match(view.warnings[0] ?? '', /lease .* has ended: its disks are detached/);
    assert.deepEqual(story.devices, ['vda']);
    assert.equal(story.scene.proxy.exportsByClone.size, 0);
    assert.equal(story.scene.proxy.clonesById.size, 1);
    if (dieAt % 5 !== 1) return;
    await story.ask('parked', (server) => server.recoveries.resume(story.id));
    await story.until('available');
    assert.deepEqual(story.devices, ['vda', 'vdb']);
    assert.equal(story.scene.proxy.clonesMade.length, 1, 'the clone with its writes');
  });
  assert.ok(points >= 10, `only ${points} points were tried`);
});

test('two targets see the disks of one machine, each its own clone', async () => {
  await withStory(async (story) => {
    const other = story.scene.hypervisor.addMachine({ name: 'other', power: 'on' });
    await story.begin();
    await story.until('available');
    const wanted = { machine: 'web01', mode: 'flr', into: 'other', disks: ['vda'] };
    const second = await story.server.recoveries.create(recoveryRequest.parse(wanted));
    assert.equal(second.name, 'web01-in-other');
    await story.server.until(second.id, ['available']);
    assert.deepEqual(
      other.disks.map(({ name }) => name),
      ['vda'],
    );
    assert.equal(story.scene.proxy.clonesById.size, 2);
    await story.cancel('available');
    await story.until('cancelled');
    assert.equal(other.disks.length, 1, "the other one's is still there");
  });
});

test('a target that cannot take disks is refused, and nothing is made', async () => {
  const states = [
    { power: 'off', code: 'wrong-state', message: /helper is off/ },
    { power: 'paused', code: 'wrong-state', message: /helper is paused/ },
    { hostId: 'gone', code: 'host-unreachable', message: /host of helper is not known/ },
  ] as const;
  for (const { code, message, ...state } of states) {
    await withStory(async (story) => {
      story.scene.hypervisor.addMachine({ ...story.helper, ...state });
      await assert.rejects(story.begin(), { code, message });
      assert.deepEqual(await story.server.recoveries.list({}), []);
      assert.equal(story.scene.proxy.clonesMade.length, 0);
    });
  }
  await withStory(async (story) => {
    await story.begin();
    const { recoveries } = story.server;
    const request = (more: object) =>
      recoveries.create(recoveryRequest.parse({ machine: 'web01', mode: 'flr', ...more }));
    await assert.rejects(request({ into: 'nobody' }), { code: 'not-found' });
    await assert.rejects(request({ into: 'helper', disks: ['vdz'] }), {
      code: 'not-found',
      advice: 'Its disks are: vda.',
    });
  });
});
