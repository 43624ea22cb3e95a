/**
 * Every fault of a vCenter at every step of a recovery, on the stand-in (lab/vcenter): each ends in a
 * machine that runs or in a clean undo, with a message that says what to do.
 */
import assert from 'node:assert/strict';
import { after, afterEach, describe, test } from 'node:test';
import { eventually } from '#lab/processes.ts';
import { enterWorld } from '#lab/world.ts';
import { readOne } from '#src/hypervisors/vsphere/properties.ts';
import { leaf, textAt } from '#src/hypervisors/vsphere/vim-xml.ts';
import { VsphereScene } from './vsphere-scene.ts';
import { Story, type Work } from './vsphere-story.ts';

const world = await enterWorld({ guests: false });
const scene = await VsphereScene.open(world);
const { vcenter } = scene;
const story = new Story(scene, await scene.server(scene.database()));
const { running, life } = story.server;
afterEach(() => story.tidy());
after(async () => {
  await running.stop();
  await scene.close();
});

interface Case {
  readonly what: string;
  /** What goes wrong. */
  readonly arrange: Work;
  /** Default: it runs all the same. */
  readonly failsSaying?: RegExp;
  readonly advises?: RegExp;
  /** What a person does about it, while its undo waits for that. */
  readonly mendedBy?: Work;
}

const always = (method: string, fault: string, message: string) => () =>
  vcenter.fault({ method, fault, message });
const once = (method: string, fault: string) => () =>
  vcenter.fault({ method, nth: 1, fault, message: `${fault} of the test` });
const lost = (method: string) => () => vcenter.fault({ method, nth: 1, dropAnswer: true });
const asks = (choices: readonly string[], stubborn = false, id = 'msg.hbacommon.outofspace') =>
  vcenter.question({
    id,
    text: 'There is no more space. Go on?',
    choices: choices.map((label, index) => ({ key: String(index), label })),
    stubborn,
  });

const full = 'NFS has reached the maximum number of supported volumes.';
const denied = 'The mount request was denied by the NFS server.';

const opening: readonly Case[] = [
  {
    what: 'the mount is refused',
    arrange: always('CreateNasDatastore', 'PlatformConfigFault', denied),
    failsSaying: /host esx1 cannot mount 10\.77\.0\.1:.*mount request was denied/,
    advises: /ports 111 and 2049/,
  },
  { what: 'the mount is refused once', arrange: once('CreateNasDatastore', 'HostConfigFault') },
  {
    what: 'the name of the datastore is taken',
    arrange: always('CreateNasDatastore', 'DuplicateName', 'The name already exists.'),
    failsSaying: /The name already exists/,
  },
  {
    what: 'the host has no slot left when it mounts',
    arrange: always('CreateNasDatastore', 'PlatformConfigFault', full),
    failsSaying: /cannot mount .*maximum number of supported volumes/,
    advises: /NFS\.MaxVolumes/,
  },
  { what: 'the answer to the mount is lost', arrange: lost('CreateNasDatastore') },
  { what: 'the answer to the registration is lost', arrange: lost('RegisterVM_Task') },
  { what: 'the answer to the power-on is lost', arrange: lost('PowerOnVM_Task') },
  {
    what: 'the .vmx is refused',
    arrange: always('RegisterVM_Task', 'InvalidVmConfig', 'The configuration is invalid.'),
    failsSaying: /registering web01: The configuration is invalid/,
  },
  { what: 'the registration fails once', arrange: once('RegisterVM_Task', 'SystemError') },
  {
    what: 'somebody takes the name just before the registration',
    arrange: always('RegisterVM_Task', 'DuplicateName', 'The name web01 already exists.'),
    failsSaying: /a machine web01 .*exists and is not of this recovery/,
    advises: /--name/,
  },
  {
    what: 'the machine is refused its power',
    arrange: always('PowerOnVM_Task', 'InsufficientResourcesFault', 'Insufficient resources.'),
    failsSaying: /powering on web01: Insufficient resources/,
  },
  {
    what: 'the call for power itself fails once',
    arrange: () =>
      vcenter.fault({ method: 'PowerOnVM_Task', nth: 1, fault: 'TaskInProgress', inCall: true }),
  },
  {
    what: 'a privilege is missing',
    arrange: () => vcenter.missingPrivileges([{ privilege: 'Host.Config.Storage' }]),
    failsSaying: /privilege Host\.Config\.Storage is missing on host esx1/,
    advises: /Add Host\.Config\.Storage to the role/,
  },
  {
    what: 'a privilege is taken away on the way',
    arrange: story.at('before RegisterVM_Task', () =>
      vcenter.missingPrivileges([{ privilege: 'VirtualMachine.Inventory.Register' }]),
    ),
    failsSaying: /privilege VirtualMachine\.Inventory\.Register/,
    advises: /Give the user of Rouse a role/,
  },
];

const sessionsAndHosts: readonly Case[] = [
  {
    what: 'the session is lost before and after every call that changes something',
    arrange: async () => {
      life.onMeet = () => vcenter.dropSessions();
    },
  },
  {
    what: 'the vCenter is gone for a while before and after every such call',
    // After three attempts in less than a second it is still away.
    arrange: async () => story.goAwayAt(/CreateNasDatastore|RegisterVM_Task|PowerOnVM_Task/u, 1500),
  },
  {
    what: 'the host is put into maintenance before its machine is powered on',
    arrange: story.at('before PowerOnVM_Task', () => vcenter.host('esx1', { maintenance: true })),
    failsSaying: /powering on web01: .*not allowed in the current state of the host/,
  },
  {
    what: 'the host is disconnected before it mounts',
    arrange: story.at('before CreateNasDatastore', () =>
      vcenter.host('esx1', { connection: 'disconnected' }),
    ),
    failsSaying: /disconnected/,
    advises: /[Rr]econnect|[Bb]ring it back/,
  },
  {
    what: 'the host dies when it has mounted, and comes back',
    arrange: story.at('before RegisterVM_Task', () => vcenter.host('esx1', { dies: true })),
    mendedBy: () => vcenter.host('esx1', { connection: 'connected' }),
    failsSaying: /disconnected/,
    advises: /Reconnect/,
  },
  {
    what: 'the host dies when the machine is on, and comes back',
    arrange: story.at('after PowerOnVM_Task', async () => {
      await scene.boots('web01');
      await vcenter.host('esx1', { dies: true });
    }),
    mendedBy: () => vcenter.host('esx1', { connection: 'connected' }),
  },
];

const questions: readonly Case[] = [
  {
    what: 'the machine asks whether it was moved',
    arrange: () =>
      asks(['button.uuid.cancel', 'button.uuid.movedTheVM'], false, 'msg.uuid.altered'),
  },
  {
    what: 'the machine asks what nobody knows',
    arrange: () => asks(['Go on', 'Cancel']),
    failsSaying: /web01 asks: There is no more space\. Go on\?/,
    advises: /does not know the answer \(Go on.*, Cancel.*\)\. Recover without --power-on/,
  },
  {
    what: 'the machine asks what nobody knows, and its power-on cannot be cancelled',
    arrange: () => asks(['Go on', 'Cancel'], true),
    failsSaying: /web01 asks: There is no more space/,
  },
];

async function tried({ arrange, failsSaying, advises, mendedBy }: Case): Promise<void> {
  await arrange();
  const id = await story.begin();
  if (mendedBy !== undefined && failsSaying !== undefined) {
    const isStuck = async () => {
      const runs = await running.engine.runs({ subject: id });
      return runs[0]?.stuck;
    };
    const stuck = await eventually('the undo to wait', isStuck, 60_000, 50);
    assert.match(stuck.message, failsSaying);
    assert.match(stuck.advice, advises ?? /./);
    assert.notDeepEqual((await scene.held()).exports, [], 'in doubt it is still exported');
  }
  if (failsSaying !== undefined) await mendedBy?.();
  const view = await story.until(id, 'available', 'failed');
  if (failsSaying === undefined) {
    assert.equal(view.error, null);
    assert.equal(view.state, 'available');
    if (mendedBy === undefined) await story.runsFromItsBackup(id);
    await mendedBy?.();
    await story.calm();
    return story.cancel(id);
  }
  assert.equal(view.state, 'failed');
  assert.match(view.error?.message ?? '', failsSaying);
  assert.match(view.error?.advice ?? '', advises ?? /./);
  await story.nothingIsLeft();
  await story.calm();
}

test('a question that only a person can end keeps what it needs until it is answered', async () => {
  await asks(['Go on', 'Wait'], true);
  const id = await story.begin();
  const isStuck = async () => (await running.engine.runs({ subject: id }))[0]?.stuck;
  const stuck = await eventually('the undo to wait', isStuck, 60_000, 50);
  assert.match(stuck.message, /web01 is being powered on, and asks something/);
  assert.match(stuck.advice, /Answer it in vCenter/);
  const { mounted, exports } = await scene.held();
  assert.deepEqual([mounted.length, exports.length], [1, 1]);
  const driver = scene.driver();
  const machine = { type: 'VirtualMachine', id: (await driver.findMarked(id)) ?? '' };
  const found = await readOne(driver.client, machine, ['runtime.question']);
  const answer = [
    leaf('questionId', textAt(found.get('runtime.question'), 'id') ?? ''),
    leaf('answerChoice', '0'),
  ];
  await driver.client.call('AnswerVM', machine, answer);
  await driver.close();
  assert.equal((await story.until(id, 'failed', 'available')).state, 'failed');
  await story.nothingIsLeft();
});

for (const [title, cases] of Object.entries({ opening, sessionsAndHosts, questions })) {
  describe(title, () => {
    for (const each of cases) test(each.what, () => tried(each));
  });
}
