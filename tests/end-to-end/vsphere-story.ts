import assert from 'node:assert/strict';
import { type Recovery, recoveryRequest } from '#src/recovery/schema.ts';
import type { MortalServer, VsphereScene } from './vsphere-scene.ts';

type State = Recovery['state'];
export type Work = () => Promise<unknown>;

/** Recoveries of `web01` one after the other, with one server that lives, and what is seen of them. */
export class Story {
  readonly scene: VsphereScene;
  readonly server: MortalServer;

  constructor(scene: VsphereScene, server: MortalServer) {
    this.scene = scene;
    this.server = server;
  }

  get recoveries() {
    return this.server.running.recoveries;
  }

  /** Onto esx1 and powered on, unless it says otherwise. */
  async begin(request: object = {}): Promise<string> {
    const wake = { machine: 'web01', powerOn: true, host: 'esx1' };
    const { id } = await this.recoveries.create(recoveryRequest.parse({ ...wake, ...request }));
    return id;
  }

  async until(id: string, ...states: State[]): Promise<Recovery> {
    const view = await this.server.running.until(id, states);
    assert.ok(view !== 'died');
    return view;
  }

  async wake(request: object = {}): Promise<string> {
    const id = await this.begin(request);
    const view = await this.until(id, 'available', 'failed');
    assert.equal(view.state, 'available', view.error?.message);
    return id;
  }

  async cancel(id: string): Promise<void> {
    await this.recoveries.cancel(id, { keepWrites: false });
    await this.until(id, 'cancelled');
    await this.nothingIsLeft();
  }

  /** Faults, states of hosts and what is done at meetings are as at the beginning. */
  async calm(): Promise<void> {
    const { vcenter } = this.scene;
    this.server.life.onMeet = async () => undefined;
    await vcenter.clearFaults();
    await vcenter.behaviour({});
    await vcenter.missingPrivileges([]);
    for (const name of ['esx1', 'esx2']) {
      await vcenter.host(name, { maintenance: false, connection: 'connected' });
    }
  }

  /** The vCenter does not listen for that long, from the first time on of each such meeting. */
  goAwayAt(meetings: RegExp, ms: number): void {
    const met = new Set<string>();
    this.server.life.onMeet = async (name) => {
      if (met.has(name) || !meetings.test(name)) return;
      met.add(name);
      await this.scene.vcenter.goAwayMs(ms);
    };
  }

  /** Whatever a test that failed has left, so that the next one begins with nothing. */
  async tidy(): Promise<void> {
    await this.calm();
    for (const { id, state } of await this.recoveries.list({ active: true })) {
      if (state !== 'cleaning') await this.recoveries.cancel(id, { keepWrites: false });
      const view = await this.until(id, 'cancelled', 'failed', 'done', 'available');
      if (view.state === 'available') await this.recoveries.cancel(id, { keepWrites: false });
      await this.until(id, 'cancelled', 'failed', 'done');
    }
    for (const { name } of await this.scene.machines()) await this.scene.forget(name);
  }

  /** At that meeting, the first time that it comes. */
  at(meeting: string, what: Work): Work {
    return async () => {
      let isDone = false;
      this.server.life.onMeet = async (name) => {
        if (name !== meeting || isDone) return;
        isDone = true;
        await what();
      };
    };
  }

  async nothingIsLeft(): Promise<void> {
    assert.deepEqual(await this.scene.held(), { mounted: [], exports: [], clones: [] });
    assert.deepEqual(await this.scene.machines(), []);
  }

  async runsFromItsBackup(id: string): Promise<void> {
    assert.equal(await this.scene.boots('web01'), 1, 'it was booted once');
    const machines = await this.scene.machines();
    assert.deepEqual(
      machines.map(({ host, poweredOn, vmx }) => [host, poweredOn, vmx]),
      [['esx1', true, `[rouse-${id}] web01/web01.vmx`]],
      'it is registered once, and runs',
    );
    const { mounted, exports, clones } = await this.scene.held();
    assert.deepEqual([mounted.length, exports.length, clones.length], [1, 1, 1]);
  }

  /** It runs in production, and nothing else is there. */
  async isProduction(): Promise<void> {
    assert.deepEqual(await this.scene.held(), { mounted: [], exports: [], clones: [] });
    const machines = await this.scene.machines();
    assert.equal(machines.length, 1);
    for (const { poweredOn, vmx, disks } of machines) {
      assert.equal(poweredOn, true);
      const files = [vmx, ...disks.map(({ file }) => file)];
      for (const file of files) assert.match(file, /^\[production\] /u);
    }
  }
}
