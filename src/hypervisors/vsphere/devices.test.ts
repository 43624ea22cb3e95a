import assert from 'node:assert/strict';
import { test } from 'node:test';
import { disksOf, freeSlot } from './devices.ts';
import { datastorePath, entityName, escapeEntityName, parseDatastorePath } from './names.ts';
import { at, envelope, leaf, node, parseVim, reference, textAt } from './vim-xml.ts';
import { knownAnswer } from './questions.ts';

const controller = (key: number, type: string, bus: number) =>
  `<VirtualDevice xsi:type="${type}"><key>${key}</key><busNumber>${bus}</busNumber></VirtualDevice>`;
const disk = (key: number, controllerKey: number, unit: number) =>
  `<VirtualDevice xsi:type="VirtualDisk"><key>${key}</key><controllerKey>${controllerKey}</controllerKey>` +
  `<unitNumber>${unit}</unitNumber><capacityInKB>1024</capacityInKB></VirtualDevice>`;
const devices = (...parts: readonly string[]) => parseVim(`<val>${parts.join('')}</val>`, 'a test');
const range = (count: number) => Array.from({ length: count }, (_, index) => index);

test('a disk gets the first free place, never that of the controller itself', () => {
  const pvscsi = controller(1000, 'ParaVirtualSCSIController', 0);
  const upTo = (units: readonly number[]) => units.map((unit) => disk(2000 + unit, 1000, unit));
  assert.equal(freeSlot(devices(pvscsi)).name, 'scsi0:0');
  assert.equal(freeSlot(devices(pvscsi, ...upTo([0, 2]))).name, 'scsi0:1');
  assert.equal(freeSlot(devices(pvscsi, ...upTo(range(7)))).name, 'scsi0:8');
  const full = upTo(range(16).filter((unit) => unit !== 7));
  assert.deepEqual(freeSlot(devices(pvscsi, ...full)), {
    controllerKey: -1,
    unit: 0,
    name: 'scsi1:0',
    add: { type: 'ParaVirtualSCSIController', bus: 1 },
  });
  const sata = controller(15_000, 'VirtualAHCIController', 0);
  assert.equal(freeSlot(devices(sata, disk(1, 15_000, 0))).name, 'sata0:1');
  assert.equal(freeSlot(devices()).add?.type, 'VirtualLsiLogicSASController');
});

test('four full controllers have no place', () => {
  const all = range(4).flatMap((bus) => [
    controller(1000 + bus, 'VirtualLsiLogicController', bus),
    ...range(16).map((unit) => disk(2000 + bus * 16 + unit, 1000 + bus, unit)),
  ]);
  assert.throws(() => freeSlot(devices(...all)), { code: 'hypervisor-error' });
  assert.equal(disksOf(devices(...all)).at(-1)?.name, 'scsi3:15');
});

test('names and paths are written and read as vSphere has them', () => {
  assert.equal(entityName('a%2fb%5cc%25'), 'a/b\\c%');
  assert.equal(escapeEntityName('a/b\\c%'), 'a%2fb%5cc%25');
  const path = datastorePath('data store', 'web01/web 01.vmx');
  assert.deepEqual(parseDatastorePath(path), { datastore: 'data store', path: 'web01/web 01.vmx' });
  assert.equal(parseDatastorePath('/vmfs/volumes/x/y.vmdk'), undefined);
});

test('what is written is read again, and what cannot be written is refused', () => {
  const odd = `a<b>&"c' ]]> \u00e9\t\r\n`;
  const self = { type: 'Odd"Type', id: '/tmp/a:b@c<d>' };
  const text = envelope('Do_Task', self, [
    leaf('name', odd),
    leaf('missing', undefined),
    node('device', [leaf('key', -1)], 'VirtualDisk'),
    reference('pool', undefined),
  ]);
  const body = at(parseVim(text, 'a test'), 'Body.Do_Task');
  assert.equal(textAt(body, 'name'), odd);
  assert.equal(textAt(body, '_this'), self.id);
  assert.deepEqual(
    body?.children.map(({ name }) => name),
    ['_this', 'name', 'device'],
  );
  assert.equal(at(body, 'device')?.type, 'VirtualDisk');
  assert.throws(() => leaf('name', 'a\u0000b'), { code: 'bad-request' });
  for (const bad of [
    '',
    'no xml',
    '<a><b></a>',
    '<!DOCTYPE a><a/>',
    '<a>&unknown;</a>',
    '<a/><b/>',
  ]) {
    assert.throws(() => parseVim(bad, 'a test'), { code: 'hypervisor-error' }, bad);
  }
  assert.equal(parseVim('<p:a><![CDATA[x &amp; <y>]]></p:a>', 'a test').text, 'x &amp; <y>');
});

test('only the question that is known is answered: moved, as the identity is chosen already', () => {
  const choices =
    '<choice><choiceInfo><label>Cancel</label><summary/><key>0</key></choiceInfo>' +
    '<choiceInfo><label>I _moved it</label><summary/><key>1</key></choiceInfo>' +
    '<choiceInfo><label>I _copied it</label><summary/><key>2</key></choiceInfo></choice>';
  const ask = (id: string) =>
    parseVim(
      `<val><id>_vmx1</id><text>?</text>${choices}<message><id>${id}</id></message></val>`,
      'q',
    );
  assert.equal(knownAnswer(ask('msg.uuid.altered')), '1');
  assert.equal(knownAnswer(ask('msg.hbacommon.outofspace')), undefined);
});
