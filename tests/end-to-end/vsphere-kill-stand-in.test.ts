/**
 * kill -9 of the server before and after each call that changes something, with the real driver on
 * the stand-in for vCenter and a real proxy: whatever was begun is finished or undone, once, and
 * nothing is left.
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { enterWorld } from '#lab/world.ts';
import { type Recovery, recoveryRequest } from '#src/recovery/schema.ts';
import { type MortalServer, VsphereScene } from './vsphere-scene.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter } = scene;
after(() => scene.close());

type State = Recovery['state'];

/** One recovery; when its server dies, the next one goes on with its database. */
class Story {
  readonly name: string;
  readonly #database = scene.database();
  /** What the first server met, and died at. */
  meetings: readonly string[] = [];
  died = false;
  id = '';
  #server: MortalServer | undefined;

  constructor(name: string) {
    this.name = name;
  }

  get server(): MortalServer {
    assert.ok(this.#server);
    return this.#server;
  }

  async start(dieAt?: number): Promise<void> {
    this.#server = await scene.server(this.#database, dieAt);
    this.meetings = this.#server.life.meetings;
  }

  async wake(): Promise<void> {
    const wanted = { machine: 'web01', name: this.name, powerOn: true };
    const { id } = await this.server.running.recoveries.create(recoveryRequest.parse(wanted));
    this.id = id;
  }

  async until(...states: State[]): Promise<Recovery> {
    for (;;) {
      const view = await this.server.running.until(this.id, states);
      if (view !== 'died') return view;
      await this.#next();
    }
  }

  /** Asks; a server that died while it was asked is asked again if it had not taken it up. */
  async ask(while_: State, what: (server: MortalServer) => Promise<unknown>): Promise<void> {
    const asked = what(this.server).then(() => 'asked' as const);
    if ((await Promise.race([asked, this.server.life.died])) === 'asked') return;
    await this.#next();
    const { state } = await this.server.running.recoveries.get(this.id);
    if (state === while_) await what(this.server);
  }

  async #next(): Promise<void> {
    this.died = true;
    await this.server.running.bury();
    this.#server = await scene.server(this.#database);
  }

  async end(): Promise<void> {
    await this.#server?.running.stop();
    await this.#server?.driver.close();
  }

  /** What is there of it, as the stand-in and the proxy tell. */
  async left() {
    const { mounted, exports, clones } = await scene.held();
    const isIts = (text: string) => text.includes(this.id);
    const machines = (await scene.machines()).filter(({ name }) => name === this.name);
    return { machines, things: [...mounted, ...exports, ...clones].filter(isIts) };
  }
}

/**
 * Tells the story again and again, each time with a server that dies one meeting later, until none
 * is met. Some at once: they wait for one another's guests anyhow.
 */
async function killedEverywhere(
  title: string,
  tell: (story: Story, dieAt: number) => Promise<void>,
): Promise<readonly string[]> {
  let next = 1;
  let isOver = false;
  let meetings: readonly string[] = [];
  const lane = async () => {
    while (!isOver) {
      const dieAt = next++;
      const story = new Story(`${title}-${dieAt}`);
      try {
        await tell(story, dieAt);
        if (!story.died) {
          isOver = true;
          ({ meetings } = story);
        }
      } catch (error) {
        isOver = true;
        throw new Error(`killed at ${dieAt}: ${story.meetings.at(-1)}`, { cause: error });
      } finally {
        await story.end();
      }
    }
  };
  await Promise.all([lane(), lane(), lane()]);
  return meetings;
}

const changing = /_Task$|^UnregisterVM$/u;

/** Calls that change that machine, in their order. */
async function changesOf(machineId: string): Promise<string[]> {
  const calls = await vcenter.calls();
  return calls
    .filter(({ object, method }) => object === machineId && changing.test(method))
    .map(({ method }) => method);
}

test('killed anywhere from the beginning to the end of relocation, it runs in production, once', async () => {
  const meetings = await killedEverywhere('moves', async (story, dieAt) => {
    await story.start(dieAt);
    await story.wake();
    const view = await story.until('available', 'failed');
    assert.equal(view.state, 'available', view.error?.message);
    await scene.boots(story.name);
    await story.ask('available', ({ running }) =>
      running.recoveries.relocate(story.id, { datastore: 'production' }),
    );
    assert.equal((await story.until('done', 'failed', 'available')).state, 'done');
    const { machines, things } = await story.left();
    assert.deepEqual(things, []);
    const [machine] = machines;
    assert.ok(machine !== undefined && machines.length === 1, 'it is registered once');
    assert.equal(machine.poweredOn, true);
    assert.equal(await scene.boots(story.name), 1, 'it was booted once');
    for (const file of [machine.vmx, ...machine.disks.map((disk) => disk.file)]) {
      assert.match(file, /^\[production\] /u);
    }
    const changes = await changesOf(machine.id);
    assert.deepEqual(changes.slice(0, 2), ['PowerOnVM_Task', 'RelocateVM_Task']);
    assert.deepEqual(changes.slice(2), [], 'nothing is done to it in production');
  });
  assert.ok(meetings.includes('after RelocateVM_Task'), meetings.join(', '));
  assert.ok(meetings.length >= 24, `only ${meetings.length} points were tried`);
});

test('killed anywhere in the clean-up of a cancelled recovery, nothing is left', async () => {
  const meetings = await killedEverywhere('ends', async (story, dieAt) => {
    await story.start();
    await story.wake();
    await story.until('available');
    story.server.life.dieAfter(dieAt);
    await story.ask('available', ({ running }) =>
      running.recoveries.cancel(story.id, { keepWrites: false }),
    );
    await story.until('cancelled');
    assert.deepEqual(await story.left(), { machines: [], things: [] });
  });
  assert.ok(meetings.includes('after UnregisterVM') && meetings.includes('after RemoveDatastore'));
});

test('killed anywhere while a failed recovery is undone, it is undone in the end', async () => {
  await vcenter.fault({ method: 'PowerOnVM_Task', fault: 'SystemError', message: 'no power' });
  const meetings = await killedEverywhere('fails', async (story, dieAt) => {
    await story.start(dieAt);
    await story.wake();
    const view = await story.until('failed', 'available');
    assert.equal(view.state, 'failed');
    assert.match(view.error?.message ?? '', /no power/);
    assert.deepEqual(await story.left(), { machines: [], things: [] });
  });
  await vcenter.clearFaults();
  assert.ok(meetings.length >= 26, `only ${meetings.length} points were tried`);
});

test('killed while the disks move, the next server joins the relocation that runs', async () => {
  await vcenter.behaviour({ relocateBytesPerSecond: 512 << 10 });
  const story = new Story('joins');
  await story.start();
  await story.wake();
  await story.until('available');
  await scene.boots('joins');
  story.server.life.dieAfter(2);
  await story.ask('available', ({ running }) =>
    running.recoveries.relocate(story.id, { datastore: 'production' }),
  );
  assert.equal((await story.until('done', 'available')).state, 'done');
  assert.equal(story.died, true);
  const { machines } = await story.left();
  const changes = await changesOf(machines[0]?.id ?? '');
  assert.deepEqual(changes, ['PowerOnVM_Task', 'RelocateVM_Task']);
  await story.end();
  await vcenter.behaviour({});
});

test('killed while the machine asks something, it is undone and nothing asks any more', async () => {
  const choices = [
    { key: '0', label: 'Cancel' },
    { key: '1', label: 'Go on' },
  ];
  const question = { id: 'msg.unknown', text: 'Who are you?', choices };
  for (const stubborn of [false, true]) {
    await vcenter.question({ ...question, stubborn });
    const story = new Story(`asks-${stubborn}`);
    await story.start();
    const { life } = story.server;
    life.onMeet = async (name) => {
      if (name === 'before PowerOnVM_Task') life.dieAfter(1);
    };
    await story.wake();
    assert.equal((await story.until('failed', 'available')).state, 'failed');
    assert.equal(story.died, true);
    assert.deepEqual(await story.left(), { machines: [], things: [] });
    await story.end();
  }
  await vcenter.clearFaults();
});
