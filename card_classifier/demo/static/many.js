// The tab for many photos: each is answered on its own, two at a time, and none that fails stops the others.
(demo => {
  const {texts, limits, fill, say, escaped} = demo;
  const together = 2; // Photos that are asked about at the same time

  const leastSure = answer => {
    const clear = answer.cards.filter(card => card.is_clear).map(card => card.probability);
    const percent = Math.min(99.9, 100 * Math.min(...clear));
    return clear.length ? `${percent.toFixed(percent >= 9.5 && percent < 98.5 ? 0 : 1)}%` : '';
  };

  const newFigure = (number, name) => {
    const figure = document.createElement('figure');
    figure.innerHTML = '<div class="hero"></div><figcaption><b></b><span class="file"></span></figcaption>';
    figure.querySelector('figcaption b').textContent = texts.many.waiting;
    figure.querySelector('.file').textContent = `${number}. ${name}`;
    figure.querySelector('.file').title = name;
    figure.dataset.state = 'waiting';
    return figure;
  };

  const showFigure = (figure, entry) => {
    const {photo, answer} = entry;
    figure.dataset.state = answer.status === 200 ? 'answered' : 'refused';
    demo.showPicture(figure.querySelector('.hero'), photo, answer);
    for (const tag of figure.querySelectorAll('.tag')) { // A small picture is one button and not many
      const label = document.createElement('b');
      label.className = tag.className;
      label.style.cssText = tag.style.cssText;
      label.textContent = tag.textContent;
      tag.replaceWith(label);
    }
    figure.querySelector('figcaption b').textContent = answer.summary || answer.title;
    if (answer.status !== 200) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = texts.many.closer;
    button.dataset.do = 'closer';
    button.setAttribute('aria-label', `${texts.many.closer}: ${figure.querySelector('.file').textContent}`);
    figure.querySelector('figcaption').append(button);
  };

  const showRow = (body, number, entry) => {
    const row = body.insertRow();
    const {photo, answer} = entry;
    row.innerHTML = [number, photo.name, answer.summary || answer.title, leastSure(answer)]
      .map(value => `<td>${escaped(String(value))}</td>`).join('');
  };

  demo.openMany = element => {
    const tab = element.querySelector('.many');
    const [stage, gallery, count] = ['.stage', '.gallery', '.count'].map(name => tab.querySelector(name));
    const [table, dialog, chooser] = ['.results', 'dialog', '.chooser'].map(name => tab.querySelector(name));
    let [entries, asked] = [[], new AbortController()];

    const tell = () => {
      const answers = entries.map(entry => entry.answer).filter(Boolean);
      const cards = answers.reduce((sum, answer) => sum + answer.cards.filter(card => card.is_clear).length, 0);
      const counted = `${cards} ${texts.many.card_noun[cards === 1 ? 0 : 1]}`;
      count.textContent = fill(texts.many.count, {done: answers.length, all: entries.length, cards: counted});
      tab.dataset.state = answers.length < entries.length ? 'waiting' : 'answered';
      if (tab.dataset.state !== 'answered') return;
      table.hidden = false;
      table.tBodies[0].innerHTML = '';
      entries.forEach((entry, place) => showRow(table.tBodies[0], place + 1, entry));
    };

    const answerOf = async (entry, signal) => {
      const {file} = entry;
      if (!demo.isPicture(file)) return demo.refusal(415);
      entry.photo = await demo.prepare(file);
      if (entry.photo.content.size > limits.bytes) return demo.refusal(413);
      if (entry.photo.url) demo.showPicture(entry.figure.querySelector('.hero'), entry.photo, null);
      return demo.ask(entry.photo, signal);
    };

    const askAll = async () => {
      const {signal} = asked;
      const left = [...entries];
      const work = async () => {
        while (left.length && !signal.aborted) {
          const entry = left.shift();
          const answer = await answerOf(entry, signal).catch(() => demo.refusal(0));
          if (signal.aborted) return;
          entry.answer = answer;
          showFigure(entry.figure, entry);
          tell();
        }
      };
      await Promise.all(Array.from({length: together}, work));
    };

    const forget = () => {
      asked.abort();
      asked = new AbortController();
      for (const {photo} of entries) if (photo.url?.startsWith('blob:')) URL.revokeObjectURL(photo.url);
      entries = [];
      say(stage, '');
      gallery.innerHTML = '';
      table.hidden = true;
      count.textContent = '';
    };

    const offer = files => {
      forget();
      const taken = files.slice(0, limits.files);
      if (files.length > taken.length) {
        const counts = {most: limits.files, all: files.length, left: files.length - taken.length};
        say(stage, fill(texts.script.too_many, counts));
      }
      entries = taken.map((file, place) => {
        const name = file.name || 'photo';
        return {file, photo: {name, url: null}, answer: null, figure: newFigure(place + 1, name)};
      });
      gallery.append(...entries.map(entry => entry.figure));
      tell();
      demo.reveal(gallery);
      askAll();
    };

    const askAgain = () => {
      if (!entries.length) return;
      asked.abort();
      asked = new AbortController();
      for (const entry of entries) {
        if (entry.photo.url?.startsWith('blob:')) URL.revokeObjectURL(entry.photo.url);
        const figure = newFigure(entries.indexOf(entry) + 1, entry.photo.name);
        entry.figure.replaceWith(figure);
        Object.assign(entry, {figure, answer: null});
      }
      table.hidden = true;
      tell();
      askAll();
    };

    // What is answered stays; what is not is taken out.
    const stop = () => {
      asked.abort();
      asked = new AbortController();
      entries.filter(entry => !entry.answer).forEach(entry => entry.figure.remove());
      entries = entries.filter(entry => entry.answer);
      if (entries.length) tell();
      else {
        forget();
        tab.dataset.state = 'empty';
      }
    };

    const closer = button => {
      const entry = entries.find(one => one.figure.contains(button));
      demo.showAnswer(dialog.querySelector('.hero'), dialog.querySelector('.words'), entry.photo, entry.answer);
      dialog.showModal();
    };

    const zip = async () => {
      const seen = entries.filter(entry => entry.answer.status === 200 && entry.photo.url);
      const files = await Promise.all(seen.map(async entry => {
        const number = String(entries.indexOf(entry) + 1).padStart(2, '0');
        const name = entry.photo.name.replace(/\.[^.]*$/, '').replace(/[\\/:*?"<>|]/g, '_');
        return {name: `${number}-${name}.jpg`, blob: await demo.annotated(entry.photo, entry.answer)};
      }));
      demo.download(await demo.zipped([...files, {name: texts.script.table, blob: demo.table(entries)}]), texts.script.pictures);
    };

    demo.onButtons(tab, {
      choose: () => chooser.click(), cancel: stop, closer, zip, close: () => dialog.close(),
      csv: () => demo.download(demo.table(entries), texts.script.table),
    });
    chooser.addEventListener('change', () => {
      const files = [...chooser.files];
      if (files.length) offer(files);
      chooser.value = '';
    });
    demo.takesFiles(tab, stage, offer);
    demo.followDeck(tab, askAgain);
    addEventListener('offline', () => say(stage, texts.script.offline));
    addEventListener('online', () => stage.querySelector('.notice').textContent === texts.script.offline && say(stage, ''));
    tab.dataset.isReady = true; // From here on the buttons do something
  };
})(window.cardDemo);
