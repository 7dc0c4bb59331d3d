// The tab for one photo. What it shows is one of: nothing yet, the camera, a photo that is awaited, an answer.
(demo => {
  const {texts, limits, fill, say} = demo;
  const slow = 6000; // Milliseconds after which waiting is explained

  demo.openOne = element => {
    const tab = element.querySelector('.one');
    const [stage, hero, words] = ['.stage', '.hero', '.words'].map(name => tab.querySelector(name));
    const [chooser, shutter] = ['.chooser', '.shutter'].map(name => tab.querySelector(name));
    const live = tab.querySelector('.live');
    const welcome = words.innerHTML;
    let [photo, answer, camera, asked] = [null, null, null, new AbortController()];

    const be = state => {
      tab.dataset.state = state;
    };

    // Whatever was there is gone: no answer stays beside another photo.
    const forget = () => {
      asked.abort();
      asked = new AbortController();
      camera?.stop();
      camera = null;
      answer = null;
      say(stage, '');
      hero.innerHTML = '';
      hero.hidden = true;
      words.innerHTML = '';
    };

    const clear = () => {
      forget();
      if (photo?.url?.startsWith('blob:')) URL.revokeObjectURL(photo.url);
      photo = null;
      words.innerHTML = welcome;
      be('empty');
    };

    const wait = () => {
      be('waiting');
      words.innerHTML = '<div class="answer awaited"><h2></h2><p class="lead"></p></div>';
      words.querySelector('h2').textContent = texts.script.waiting;
      const {signal} = asked;
      const timer = setTimeout(() => {
        const line = words.querySelector('.awaited .lead');
        if (line) line.textContent = texts.script.slow;
      }, slow);
      signal.addEventListener('abort', () => clearTimeout(timer), {once: true});
      return () => clearTimeout(timer);
    };

    const askAbout = async () => {
      const {signal} = asked;
      demo.showPicture(hero, photo, null);
      const arrived = wait();
      demo.reveal(stage);
      const isOneDeck = demo.isOneDeck();
      const said = await demo.ask(photo, signal).catch(() => null);
      arrived();
      if (signal.aborted || !said) return null;
      if (isOneDeck !== demo.isOneDeck()) return askAbout(); // Turned while it was awaited
      answer = said;
      be(said.status === 200 ? 'answered' : 'refused');
      demo.showAnswer(hero, words, photo, said);
      demo.reveal(said.status === 200 ? stage : words);
      return null;
    };

    const offer = async file => {
      if (!demo.isPicture(file)) return say(stage, texts.script.no_picture);
      forget();
      const {signal} = asked;
      wait();
      const made = await demo.prepare(file);
      if (signal.aborted) return null;
      if (made.content.size > limits.bytes) {
        clear();
        const sizes = {size: demo.megabytes(made.content.size), most: demo.megabytes(limits.bytes)};
        return say(stage, fill(texts.script.too_large, sizes));
      }
      if (photo?.url?.startsWith('blob:')) URL.revokeObjectURL(photo.url);
      photo = made;
      return askAbout();
    };

    const example = async name => {
      forget();
      const {signal} = asked;
      wait();
      try {
        const response = await fetch(`${demo.home}examples/${name}.webp`, {signal});
        if (!response.ok) throw new Error(response.status);
        const blob = await response.blob();
        if (!signal.aborted) await offer(new File([blob], `${name}.webp`, {type: 'image/webp'}));
      } catch {
        if (signal.aborted) return;
        photo = null;
        be('refused');
        words.innerHTML = demo.refusal(0).words;
        again = () => example(name);
      }
    };

    const openCamera = async () => {
      if (!demo.hasCamera()) return shutter.click(); // Without TLS browsers offer no stream, but a file input takes a photo
      forget();
      words.innerHTML = welcome;
      be('live');
      const {signal} = asked;
      try {
        const opened = await demo.startCamera(live);
        if (signal.aborted) return opened.stop();
        camera = opened;
        demo.reveal(live);
      } catch (error) {
        if (signal.aborted) return null;
        clear();
        const isMissing = ['NotFoundError', 'OverconstrainedError', 'NotReadableError'].includes(error.name);
        say(stage, isMissing ? texts.script.no_camera : texts.script.not_allowed);
      }
      return null;
    };

    const keep = async () => {
      const file = camera && await camera.keep();
      if (file) await offer(file);
    };

    const paste = async () => {
      try {
        for (const item of await navigator.clipboard.read()) {
          const kind = item.types.find(type => type.startsWith('image/'));
          if (kind) return offer(new File([await item.getType(kind)], 'pasted', {type: kind}));
        }
        say(stage, texts.script.no_paste);
      } catch (error) {
        say(stage, error.name === 'NotAllowedError' ? texts.script.not_allowed_paste : texts.script.no_paste);
      }
      return null;
    };

    let again = askAbout;
    const repeat = () => {
      if (!photo) return again();
      asked.abort();
      asked = new AbortController();
      return askAbout();
    };
    const save = async () => demo.download(await demo.annotated(photo, answer), texts.script.saved);
    const share = async () => demo.share(await demo.annotated(photo, answer), texts.script.saved, answer.summary);

    demo.onButtons(tab, {
      choose: () => chooser.click(), camera: openCamera, paste, keep, stop: clear, cancel: clear, clear, again: repeat,
      save, share,
    });
    for (const input of [chooser, shutter]) {
      input.addEventListener('change', () => {
        const [file] = input.files;
        if (file) offer(file);
        input.value = ''; // The same file may be chosen again
      });
    }
    tab.querySelector('.tries').addEventListener('click', event => {
      const button = event.target.closest('[data-example]');
      if (button) example(button.dataset.example);
    });
    demo.takesFiles(tab, stage, files => offer(files[0]));
    demo.followDeck(tab, () => tab.dataset.state === 'answered' && repeat());
    addEventListener('offline', () => say(stage, texts.script.offline));
    addEventListener('online', () => stage.querySelector('.notice').textContent === texts.script.offline && say(stage, ''));
    if (!navigator.onLine) say(stage, texts.script.offline);
    tab.querySelector('[data-do=paste]').hidden = !navigator.clipboard?.read;
    tab.querySelector('[data-do=share]').hidden = !demo.canShare();
    tab.dataset.isReady = true; // From here on the buttons do something
  };

  // Files that are dropped on a part of the page, or pasted while its tab is seen.
  demo.takesFiles = (tab, stage, take) => {
    stage.addEventListener('dragover', event => {
      event.preventDefault();
      stage.classList.add('over');
    });
    for (const name of ['dragleave', 'drop']) stage.addEventListener(name, () => stage.classList.remove('over'));
    stage.addEventListener('drop', event => {
      event.preventDefault();
      if (event.dataTransfer?.files.length) take([...event.dataTransfer.files]);
    });
    document.addEventListener('paste', event => {
      const files = [...(event.clipboardData?.files || [])].filter(file => file.type.startsWith('image/'));
      if (!files.length || !demo.isVisible(tab)) return;
      event.preventDefault();
      take(files);
    });
  };
})(window.cardDemo);
